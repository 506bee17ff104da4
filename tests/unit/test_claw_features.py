"""What customers ask for in the free-form parts of a document: it is used where possible, and otherwise reported as ignored."""

from __future__ import annotations

from typing import Any

import pytest

from hydracore.agent.expressclaw.document import Document, Platform, Preset, Recipe, Telegram, Workflow, read_document
from hydracore.agent.expressclaw.features import IGNORED_MAX, Features, read_features
from hydracore.agent.expressclaw.prompt import system_prompt

TOKEN = "4711:token-of-the-installation"

A_SKILL = "a skill must be an id, or an object with id and, optionally, enabled (true or false)"


def features(**platform: Any) -> Features:
    settings = {"platform": platform, "telegram": {"bot_token": TOKEN, "base_url": "http://telegram.test"}}
    return read_features(read_document(settings))


def ignored(found: Features) -> dict[str, str]:
    return {each.path: each.reason for each in found.ignored}


def test_an_empty_document_has_no_features_and_nothing_is_ignored() -> None:
    found = read_features(Document())

    assert (found.ignored, found.states, found.webhooks, found.workflows, found.skills) == ((), {}, (), (), ())
    assert not found.bot.is_wanted


# --- channels --------------------------------------------------------------------------------------------------------


def test_a_telegram_channel_may_set_its_own_token_limit_its_users_or_be_disabled() -> None:
    from_configuration = features()
    with_own_token = features(channels={"telegram": {"bot_token": "1:own", "allowed_user_ids": [7, 8]}})
    disabled = features(channels={"telegram": {"enabled": False, "bot_token": "1:own"}})

    assert from_configuration.bot.telegram.bot_token == TOKEN
    assert from_configuration.bot.allowed_user_ids is None
    assert (with_own_token.bot.telegram.bot_token, with_own_token.bot.allowed_user_ids) == ("1:own", (7, 8))
    assert not disabled.bot.is_wanted
    assert "own" not in repr(with_own_token)


@pytest.mark.parametrize(
    "channel", ["yes", {"allowed_user_ids": "7"}, {"allowed_user_ids": ["7"]}, {"enabled": "no"}, {"bot_token": 5}]
)
def test_an_invalid_telegram_channel_gets_no_token_and_is_reported(channel: Any) -> None:
    found = features(channels={"telegram": channel})

    assert found.bot.telegram.bot_token is None
    assert found.bot.refusal_reason is not None
    assert found.bot.refusal_reason.startswith("platform.channels.telegram cannot be used: Expected ")
    assert list(ignored(found)) == ["platform.channels.telegram"]


@pytest.mark.parametrize("wanted", [900, 0, "10", None, True])
def test_an_invalid_model_timeout_is_reported_with_the_valid_range(wanted: Any) -> None:
    reason = "must be a number of seconds above 0, at most 300"

    assert ignored(features(advanced={"model_timeout_s": wanted})) == {"platform.advanced.model_timeout_s": reason}
    assert ignored(features(advanced={"model_timeout_s": 10})) == {}


def test_unknown_channels_and_settings_are_reported_and_not_used() -> None:
    channels = {
        "slack": {"token": "xoxb-secret"},
        "email": {"enabled": False},
        "telegram": {"base_url": "http://evil.test"},
    }

    found = features(channels=channels, advanced={"model_timeout_s": 900, "turbo": True})

    assert found.states == {"slack": "unsupported"}
    assert found.bot.telegram.base_url == "http://telegram.test"
    assert ignored(found) == {
        "platform.advanced.model_timeout_s": "must be a number of seconds above 0, at most 300",
        "platform.advanced.turbo": "unknown setting",
        "platform.channels.slack": "this runtime does not support this channel",
        "platform.channels.telegram.base_url": "unknown setting",
    }
    assert "xoxb" not in str(found.ignored)


# --- integrations ----------------------------------------------------------------------------------------------------


def test_valid_webhooks_are_used_and_invalid_or_unsupported_integrations_are_reported() -> None:
    good = {"id": "crm", "type": "webhook", "url": "https://crm.test/hook", "secret": "s3cret"}

    found = features(
        integrations=[
            good,
            "calendar",
            {"id": "crm", "type": "webhook", "url": "https://other.test/"},
            {"type": "zapier"},
            {"type": "webhook", "enabled": False},
            {"type": "webhook", "id": "local", "url": "http://127.0.0.1:9/x", "colour": "red"},
        ]
    )

    assert [(webhook.id, webhook.url) for webhook in found.webhooks] == [
        ("crm", "https://crm.test/hook"),
        ("local", "http://127.0.0.1:9/x"),
    ]
    assert found.states == {"integration:calendar": "unsupported", "integration:3": "unsupported"}
    assert list(ignored(found)) == [f"platform.integrations.{which}" for which in ("1", "2", "3", "5.colour")]
    assert "s3cret" not in repr(found)


@pytest.mark.parametrize(
    "url",
    [
        "http://crm.test/hook",
        "http://10.64.0.7:7400/api/chat",
        "http://169.254.169.254/metadata",
        "ftp://crm.test/",
        "https://user@crm.test/",
        "https://crm.test:99999/",
        "https://[crm.test/",
        "https:///hook",
        "https://crm.test/a b",
        "https://xn--ls8h.test/hook",
        "https://xn--/",
        "https://xn--a/",
        "",
        5,
        None,
    ],
)
def test_a_webhook_url_that_is_invalid_or_neither_https_nor_loopback_is_refused(url: Any) -> None:
    found = features(integrations=[{"id": "crm", "type": "webhook", "url": url}])

    assert found.webhooks == ()
    assert found.states["integration:crm"].startswith("error: ")
    assert list(ignored(found)) == ["platform.integrations.0"]


# --- skills and workflows --------------------------------------------------------------------------------------------


def test_skills_that_cannot_be_loaded_are_reported_with_their_path() -> None:
    found = features(skills=["email-drafts", "no-such-skill", {"id": "nor-this", "enabled": False}, 5])
    from_preset = read_features(Document(preset=Preset(skills=("no-such-skill",))))

    assert [skill.id for skill in found.skills] == ["email-drafts"]
    assert ignored(found) == {
        "platform.skills.1": "there is no skill 'no-such-skill'",
        "platform.skills.3": A_SKILL,
    }
    assert list(ignored(from_preset).values()) == ["there is no skill 'no-such-skill'"]


@pytest.mark.parametrize("enabled", ["no", "false", 0, None, []])
def test_a_skill_with_an_invalid_enabled_value_is_not_loaded_and_is_reported(enabled: Any) -> None:
    found = features(skills=[{"id": "email-drafts", "enabled": enabled}, {"id": "task-planning", "enabled": True}])

    assert [skill.id for skill in found.skills] == ["task-planning"]
    assert ignored(found) == {"platform.skills.0": A_SKILL}


def test_a_workflow_adds_its_steps_and_skills_and_an_unknown_workflow_is_reported() -> None:
    review = Workflow(
        slug="review", name="Review", when="asked for one", steps=("Ask.", "Sum up."), skills=("task-planning",)
    )
    document = Document(
        workflow_slugs=("review", "gone", "review"), workflows=(review,), platform=Platform(skills=("email-drafts",))
    )

    found = read_features(document)

    assert found.workflows == (review,)
    assert [skill.id for skill in found.skills] == ["email-drafts", "task-planning"]
    assert ignored(found) == {"workflow_slugs.1": "there is no workflow 'gone'"}
    prompt = system_prompt(document, (), found.workflows, today="2026-11-25")
    assert prompt.startswith("## Workflow: Review\n\n")
    assert "when asked for one:\n\n1. Ask.\n2. Sum up.\n\nToday is" in prompt


def test_an_unknown_recipe_is_reported() -> None:
    assert ignored(read_features(Document(recipe_id="gone"))) == {"recipe_id": "there is no recipe 'gone'"}
    assert ignored(read_features(Document(recipe_id="there", recipe=Recipe(id="there", prompt="Do.")))) == {}


def test_the_number_and_the_path_length_of_ignored_settings_are_limited() -> None:
    found = features(advanced={f"{number}{'x' * 1000}": 1 for number in range(500)})

    assert len(found.ignored) == IGNORED_MAX
    assert max(len(each.path) for each in found.ignored) == 200


def test_a_document_in_the_old_format_still_sets_the_telegram_token() -> None:
    found = read_features(Document(telegram=Telegram(bot_token=TOKEN)))

    assert found.bot.telegram.bot_token == TOKEN
