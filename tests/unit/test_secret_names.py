"""Which field names mark a text as a secret, in any spelling, and which do not."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from hydracore.documents import mask, masked, unmasked

TOKEN = "1234567890:AAH-abcdefghij"


SPELLINGS: dict[str, Callable[[list[str]], str]] = {
    **{repr(between): between.join for between in ("_", "-", " ", ".", "/", ":", "::", " - ", "")},
    "camelCase": lambda words: words[0] + "".join(map(str.capitalize, words[1:])),
    "PascalCase": lambda words: "".join(map(str.capitalize, words)),
    "UPPER": lambda words: "_".join(words).upper(),
    "UPPERTOGETHER": lambda words: "".join(words).upper(),
    "numbered": lambda words: "-".join([*words, "1"]),
    "camelV2": lambda words: words[0] + "".join(map(str.capitalize, [*words[1:], "v2"])),
    "labelled": lambda words: " ".join(words).capitalize() + ": ",
}


@pytest.mark.parametrize(
    "words",
    [
        *("api key", "x api key", "private key pem", "access key", "signing keys", "db auth key", "pass phrase"),
        *("smtp pass", "proxy oauth", "web hook url", "webhook uri", "database url", "db dsn", "connection string"),
    ],
)
def test_a_secret_is_recognised_by_its_name_in_any_common_spelling(words: str) -> None:
    names = {name: spelt(words.split()) for name, spelt in SPELLINGS.items()}
    stored = {
        "by_themselves": dict.fromkeys(names.values(), TOKEN),
        "pairs": [{"id": way, "name": name, "value": TOKEN} for way, name in names.items()],
    }

    shown = masked(stored)

    assert {name for name, text in shown["by_themselves"].items() if text != mask(TOKEN)} == set()
    assert {pair["name"] for pair in shown["pairs"] if pair["value"] != mask(TOKEN)} == set()
    assert unmasked(shown, stored) == stored


@pytest.mark.parametrize(
    "name",
    [
        *(
            "key_points",
            "Key points",
            "keyPoints",
            "keynote",
            "keyboard.layout",
            "monkey",
            "turkey 2",
            "hockey:1",
            "monkey" + "1" * 34,
        ),
        *(
            "passenger",
            "pass/fail",
            "compass",
            "bypass-1",
            "passage",
            "author",
            "auth.method",
            "authored by",
            "Trip to Kenya",
        ),
        *(
            "api",
            "api version",
            "connection",
            "string",
            "database",
            "database name",
            "web hook",
            "url",
            "curl",
            "hooked",
        ),
    ],
)
def test_an_ordinary_name_does_not_make_its_text_a_secret(name: str) -> None:
    document = {"by_itself": {name: "plain"}, "pair": [{"name": name, "value": "plain"}], "token_count": 5}

    assert masked(document) == document
