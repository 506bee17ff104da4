"""Free-form JSON documents: what they may hold, merge patches (RFC 7396), and secrets that are shown masked and sent back masked."""

import json
from typing import Any

import pytest

from hydracore.documents import (
    DEPTH_MAX,
    VALUES_MAX,
    MasksUnmatched,
    flaws,
    mask,
    masked,
    merge_patch,
    replace_secrets,
    unmasked,
)

TOKEN = "1234567890:AAH-abcdefghij"


@pytest.mark.parametrize(
    ("target", "patch", "result"),
    [
        # The examples of RFC 7396, appendix A, in their order.
        ({"a": "b"}, {"a": "c"}, {"a": "c"}),
        ({"a": "b"}, {"b": "c"}, {"a": "b", "b": "c"}),
        ({"a": "b"}, {"a": None}, {}),
        ({"a": "b", "b": "c"}, {"a": None}, {"b": "c"}),
        ({"a": ["b"]}, {"a": "c"}, {"a": "c"}),
        ({"a": "c"}, {"a": ["b"]}, {"a": ["b"]}),
        ({"a": {"b": "c"}}, {"a": {"b": "d", "c": None}}, {"a": {"b": "d"}}),
        ({"a": [{"b": "c"}]}, {"a": [1]}, {"a": [1]}),
        (["a", "b"], ["c", "d"], ["c", "d"]),
        ({"a": "b"}, ["c"], ["c"]),
        ({"a": "foo"}, None, None),
        ({"a": "foo"}, "bar", "bar"),
        ({"e": None}, {"a": 1}, {"e": None, "a": 1}),
        ([1, 2], {"a": "b", "c": None}, {"a": "b"}),
        ({}, {"a": {"bb": {"ccc": None}}}, {"a": {"bb": {}}}),
    ],
    ids=lambda value: json.dumps(value) if value is not None else "null",
)
def test_a_merge_patch_gives_the_results_of_rfc_7396_and_leaves_its_inputs_unchanged(
    target: Any, patch: Any, result: Any
) -> None:
    before = json.dumps([target, patch])

    assert merge_patch(target, patch) == result
    assert json.dumps([target, patch]) == before


def nested(depth: int) -> Any:
    value: Any = 1
    for _ in range(depth):
        value = [value]
    return value


@pytest.mark.parametrize(
    ("value", "paths"),
    [
        ({"a": [1, 2.5, "x", None, True, {"b": 2**80}]}, []),
        ({"a": float("nan"), "b": [float("inf")]}, [("a",), ("b", 0)]),
        ({"a": "x\0", "b\0": 1}, [("a",), ("b\0",)]),
        ({"a": "\ud800"}, [("a",)]),
        ({"\udfff": {"c": "\ud800"}}, [("?",), ("?", "c")]),
        (nested(DEPTH_MAX), []),
        (nested(DEPTH_MAX + 1), [(0,) * (DEPTH_MAX + 1)]),
        ({"a": [{}] * (VALUES_MAX - 2)}, []),
        ({"a": [{}] * (VALUES_MAX - 1)}, [()]),
    ],
    ids=["valid", "not_a_number", "nul", "lone_surrogate", "in_names", "deep", "too_deep", "many", "too_many"],
)
def test_values_that_cannot_be_stored_are_found_with_a_path_that_json_can_encode(value: Any, paths: list[Any]) -> None:
    found = list(flaws(value))

    assert [flaw.path for flaw in found] == paths
    json.dumps([flaw.path for flaw in found]).encode()


def test_secrets_are_masked_by_their_names_at_any_depth() -> None:
    document = {
        "telegram": {"bot_token": TOKEN, "chat": "general"},
        "list": [{"apiKey": "short", "Password": TOKEN, "name": "x"}],
        "credentials": {"user": "ann-the-owner", "more": [TOKEN]},
        "max_tokens": 5,
        "tokens": None,
        "keyboard": "qwerty",
        "signing_key": TOKEN,
        "hooks": [{"type": "webhook", "id": "crm", "url": TOKEN}, {"type": "mail", "url": "https://mail.test"}],
        "passphrase": TOKEN,
        "Set-Cookie": TOKEN,
        "basicAuth": {"user": TOKEN},
        "oauth": TOKEN,
        "sentry_dsn": TOKEN,
        "slack_webhook_url": TOKEN,
        "author": "ann",
        "auth_method": "basic",
    }

    assert masked(document) == {
        "telegram": {"bot_token": "****ghij", "chat": "general"},
        "list": [{"apiKey": "****", "Password": "****ghij", "name": "x"}],
        "credentials": {"user": "****wner", "more": ["****ghij"]},
        "max_tokens": 5,
        "tokens": None,
        "keyboard": "qwerty",
        "signing_key": "****ghij",
        "hooks": [{"type": "webhook", "id": "crm", "url": "****ghij"}, {"type": "mail", "url": "https://mail.test"}],
        "passphrase": "****ghij",
        "Set-Cookie": "****ghij",
        "basicAuth": {"user": "****ghij"},
        "oauth": "****ghij",
        "sentry_dsn": "****ghij",
        "slack_webhook_url": "****ghij",
        "author": "ann",
        "auth_method": "basic",
    }


URL = "https://ann:hunter2@crm.example/in"


@pytest.mark.parametrize(
    "secret",
    [
        {"smtp": {"pass": "?"}},
        *({name: "?"} for name in ("smtp_pass", "smtpPass", "PASS", "passcode", "bearer", "keys", "signing-keys")),
        *({name: "?"} for name in ("database_url", "databaseUrl", "DB_URI", "connection_string", "connectionString")),
        *({"type": kind, "url": "?"} for kind in ("Webhook", "WEBHOOK", "web-hook", "incoming_webhook")),
        {"Type": "webhook", "URL": "?"},
        {"headers": [{"name": "Authorization", "value": "?"}]},
        {"headers": [{"name": "x", "value": "plain"}, {"Header": "Set-Cookie", "Value": "?"}]},
        {"env": [{"name": "SMTP_PASS", "value": ["?"]}]},
        # Names that are too long to be examined are taken for secrets.
        {"x" * 1_001: "?"},
        {"name": "x" * 1_001, "value": "?"},
        {"type": "x" * 1_001, "url": "?"},
    ],
    ids=lambda secret: str(secret)[:60],
)
def test_a_secret_is_recognised_by_many_spellings_of_names_and_types(secret: Any) -> None:
    stored = json.loads(json.dumps(secret).replace("?", TOKEN))

    assert json.dumps(masked(stored)) == json.dumps(secret).replace("?", mask(TOKEN))
    assert unmasked(masked(stored), stored) == stored


@pytest.mark.parametrize(
    ("text", "is_secret"),
    [
        (URL, True),
        (f" {URL} ", True),
        ("POSTGRESQL://ann:hunter2@db/app", True),
        ("jdbc:postgresql://ann:hunter2@db/app", True),
        ("https://ghp_abcdefgh@github.example/x.git", True),
        ("https://crm.example/@ann", False),
        ("https://crm.example/?mail=ann@crm.example", False),
        ("mailto:ann@crm.example", False),
        ("ann@crm.example", False),
        (f"Write it like {URL}", False),
        ("https://x" + "@" * 200_000 + " ", True),
        ("https://x" + "@" * 200_000 + " x", False),
    ],
    ids=lambda value: str(value)[:40],
)
def test_a_url_with_a_user_in_it_is_a_secret_whatever_the_field_is_called(text: str, is_secret: bool) -> None:  # noqa: FBT001 - a parameter
    stored = {"endpoint": text, "args": ["--url", text]}
    shown = mask(text) if is_secret else text

    assert masked(stored) == {"endpoint": shown, "args": ["--url", shown]}
    assert unmasked(masked(stored), stored) == stored


def test_a_name_value_pair_whose_name_is_masked_too_is_restored_whole() -> None:
    stored = {"env": {"key": "SMTP_API_KEY", "value": "hunter2-hunter2"}, "list": [{"key": "TOKEN_A", "value": "abc"}]}

    assert masked(stored)["env"] == {"key": "****_KEY", "value": "****ter2"}
    assert unmasked(masked(stored), stored) == stored
    with pytest.raises(MasksUnmatched):
        unmasked({"env": {"key": "colour"}}, stored)


def test_a_masked_document_that_is_sent_back_keeps_its_secrets() -> None:
    stored = {"telegram": {"bot_token": TOKEN}, "list": [{"secret": "one"}, {"secret": "two"}]}

    assert unmasked(masked(stored), stored) == stored
    assert merge_patch(stored, unmasked({"telegram": {"bot_token": mask(TOKEN)}}, stored)) == stored


def test_list_items_with_ids_keep_their_secrets_when_items_are_added_removed_or_moved() -> None:
    stored = [{"id": "a", "secret": "the secret of a"}, {"id": "b", "secret": "the secret of b"}, {"secret": "third"}]
    a, b, third = masked(stored)
    new = {"id": "c", "secret": "new"}

    assert unmasked([b, new], stored) == [stored[1], new]
    assert unmasked([new, b, third, a], stored) == [new, stored[1], stored[2], stored[0]]
    with pytest.raises(MasksUnmatched):
        unmasked([{"id": "c", "secret": a["secret"]}], stored)


@pytest.mark.parametrize(
    ("patch", "paths"),
    [
        ({"telegram": {"bot_token": "****zzzz"}}, (("telegram", "bot_token"),)),
        ({"telegram": {"bot_token": "****"}}, (("telegram", "bot_token"),)),
        ({"other": {"bot_token": mask(TOKEN)}}, (("other", "bot_token"),)),
        ({"tokens": [mask(TOKEN), {"a": "****"}], "x": 1}, (("tokens", 0), ("tokens", 1, "a"))),
    ],
    ids=str,
)
def test_a_mask_that_matches_no_stored_secret_is_refused_with_its_path(patch: Any, paths: Any) -> None:
    with pytest.raises(MasksUnmatched) as caught:
        unmasked(patch, {"telegram": {"bot_token": TOKEN, "name": TOKEN}})

    assert caught.value.paths == paths


def test_a_mask_is_refused_where_a_changed_type_makes_its_field_public() -> None:
    stored = [{"id": "a", "type": "webhook", "url": "https://hooks.example/abcdefgh"}]

    with pytest.raises(MasksUnmatched) as caught:
        unmasked([masked(stored)[0] | {"type": "link"}], stored)

    assert caught.value.paths == ((0, "url"),)


def test_a_patch_that_would_make_a_stored_secret_public_is_refused() -> None:
    hook = {"type": "webhook", "url": "https://hooks.example/abcdefgh"}

    assert unmasked({"hook": {"url": mask(hook["url"])}}, {"hook": hook}) == {"hook": {"url": hook["url"]}}
    assert unmasked({"hook": {"type": "link", "url": None}}, {"hook": hook}) == {"hook": {"type": "link", "url": None}}
    for exposing in ({"type": "link"}, {"type": None}):
        with pytest.raises(MasksUnmatched) as caught:
            unmasked({"hook": exposing}, {"hook": hook})
        assert caught.value.paths == (("hook", "url"),)
    with pytest.raises(MasksUnmatched) as caught:
        unmasked({"hook": {"type": "link", "url": {}}}, {"hook": {"type": "webhook", "url": {"address": hook["url"]}}})
    assert caught.value.paths == (("hook", "url", "address"),)


@pytest.mark.parametrize(
    "patch",
    [{"telegram": {"name": "****zzzz"}}, {"telegram": "****"}, {"telegram": {"bot_token": "****zz"}}],
    ids=str,
)
def test_a_text_that_looks_like_a_mask_is_kept_where_it_cannot_be_one(patch: Any) -> None:
    assert unmasked(patch, {"telegram": {"bot_token": TOKEN, "name": TOKEN}}) == patch


async def test_replace_secrets_replaces_the_secrets_within_lists_and_nothing_else() -> None:
    async def backwards(text: str) -> str:
        return text[::-1]

    items = [{"type": "mail", "password": "abc", "ports": [25]}, "plain", {"keys": {"token": {"a": "xyz"}}}]

    replaced = await replace_secrets(items, backwards)

    assert replaced == [{"type": "mail", "password": "cba", "ports": [25]}, "plain", {"keys": {"token": {"a": "zyx"}}}]
    assert await replace_secrets(replaced, backwards) == items
