"""What agents answer, as far as the control plane reads it: how long it may be, what they say of themselves, and of an error."""

from __future__ import annotations

from typing import Annotated, Final, NamedTuple

import msgspec

from hydracore.agent.chat_messages import AgentProblem
from hydracore.reading import UNREADABLE, require_object

#: A status with a hundred skills has some 10 KB, the longest list of conversations some 200.
ANSWER_MAX_BYTES: Final = 256 * 1024

#: An answer to a chat, or an event of one: an agent ends it behind 100,000 characters, each of which JSON writes in six bytes at
#: most, and the last piece of a model's words.
CHAT_MAX_BYTES: Final = 1024 * 1024

#: An agent takes a configuration of 2 MB; in what it shows of it a mask may be longer than the secret.
CONFIG_MAX_BYTES: Final = 3 * 1024 * 1024
CONFIG_NAMES_MAX: Final = 100

#: An agent shows at most 6 MB of a conversation, counted as JSON writes it. Earlier ones counted what JSON may double.
CONVERSATION_MAX_BYTES: Final = 16 * 1024 * 1024

#: How much of an agent's own words an error keeps, in characters.
DETAIL_MAX_CHARS: Final = 500

_Document = Annotated[dict[str, msgspec.Raw], msgspec.Meta(max_length=CONFIG_NAMES_MAX)]


class ShownConfig(NamedTuple):
    """What an agent says that it runs with, secrets masked: by name, JSON as it came. `version`: None while nothing runs."""

    version: int | None
    document: dict[str, msgspec.Raw]


def shown_config(content: bytes) -> ShownConfig:
    """Raises one of `UNREADABLE`."""
    require_object(content)
    document = msgspec.json.decode(content, type=_Document)
    version = msgspec.json.decode(document.get("config_version", b"null"), type=int | None)
    return ShownConfig(version, document)


class ToldProblem(NamedTuple):
    """`code` (for programs) and `detail` (for people) are the agent's own words; None where it had none."""

    code: str | None = None
    detail: str | None = None


def told_problem(content: bytes) -> ToldProblem:
    try:
        problem = msgspec.json.decode(content, type=AgentProblem)
    except UNREADABLE:
        return ToldProblem()
    return ToldProblem(_printable(problem.code), _printable(problem.detail))


def _printable(text: str) -> str:
    return "".join(character for character in text[:DETAIL_MAX_CHARS] if character.isprintable())
