"""The scripted answers: a pure function of the messages."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import msgspec

from hydracore.json_input import JSON_ERRORS

#: Every answer begins with this, so that nobody takes it for a model's.
ANSWER_PREFIX: Final = "[scripted]"

#: The file in a home with the user's rules, which are tried before the ones here.
SCRIPT_FILE: Final = "script.json"

#: What counts as a token here: a word with the blanks behind it.
_TOKEN: Final = re.compile(r"\S+\s*|\s+")
_REQUESTED_PREFIX: Final = re.compile(r'begin every answer with "([^"]{1,80})"', re.IGNORECASE)
_COUNT: Final = re.compile(r"\bcount to (\d{1,5})\b", re.IGNORECASE)


class Message(msgspec.Struct, frozen=True):
    role: str
    content: str


class Rule(msgspec.Struct, frozen=True):
    """The answer is `answer` if the last message of the user contains `contains`, in upper or lower case."""

    contains: str
    answer: str


class ScriptError(Exception):
    """The script file cannot be used; the text says why."""


def load_rules(home: Path) -> tuple[Rule, ...]:
    """The rules of HOME/script.json (a list of `{"contains", "answer"}`), or none. Raises `ScriptError`."""
    path = home / SCRIPT_FILE
    try:
        return msgspec.json.decode(path.read_bytes(), type=tuple[Rule, ...])
    except FileNotFoundError:
        return ()
    except (OSError, *JSON_ERRORS) as error:
        raise ScriptError(f"{path}: {error}") from None


def answer(messages: Sequence[Message], rules: Sequence[Rule] = ()) -> str:
    """The answer to these messages, always the same for the same ones.

    Besides the rules: "count to N" counts, a question about its "instructions" quotes the system prompt, a question about
    what was said "before" lists the user's earlier messages, and anything else is repeated. A system prompt that says
    'Begin every answer with "WORDS"' is obeyed.
    """
    matches = (_REQUESTED_PREFIX.search(message.content) for message in messages if message.role == "system")
    opening = "".join(f"{match[1]} " for match in matches if match is not None)
    return f"{ANSWER_PREFIX} {opening}{_answer_text(messages, rules)}"


def _answer_text(messages: Sequence[Message], rules: Sequence[Rule]) -> str:
    user_messages = [message.content for message in messages if message.role == "user"]
    latest = user_messages[-1] if user_messages else ""
    for rule in rules:
        if rule.contains.lower() in latest.lower():
            return rule.answer
    count = _COUNT.search(latest)
    if count is not None:
        return " ".join(str(number) for number in range(1, int(count[1]) + 1))
    if "instructions" in latest.lower():
        instructions = "\n\n".join(message.content for message in messages if message.role == "system")
        return f"My instructions are:\n\n{instructions or '(none)'}"
    if "before" in latest.lower():
        earlier = "; ".join(user_messages[:-1]) or "(nothing)"
        return f"Before that you said: {earlier}"
    return f"You said: {latest}"


def tokens(text: str) -> list[str]:
    """Split `text` into the pieces that are streamed and counted. Joined, they are `text` again."""
    return _TOKEN.findall(text)


def count_tokens(messages: Sequence[Message]) -> int:
    return sum(len(tokens(message.content)) for message in messages)
