"""Agents' answers as the control plane reads them: how large they may be, the configuration shown, and errors."""

from __future__ import annotations

from typing import Annotated, Final, NamedTuple

import msgspec

from hydracore.agent.chat_messages import AgentProblem
from hydracore.json_input import JSON_ERRORS, require_object

#: The largest answer, except for those below. A status with a hundred skills has some 10 KB, the
#: longest list of conversations some 200 KB.
ANSWER_BYTES_MAX: Final = 256 * 1024

#: The largest answer to a chat, and event of a stream. An agent cuts a model's answer at 100,000
#: characters, each of which takes six bytes at most as JSON.
CHAT_BYTES_MAX: Final = 1024 * 1024

#: The largest configuration shown. An agent takes 2 MB, and a mask may be longer than the secret that it stands for.
CONFIG_BYTES_MAX: Final = 3 * 1024 * 1024
CONFIG_NAMES_MAX: Final = 100

#: The largest conversation. An agent shows at most 6 MB, counted as JSON; agents of earlier releases
#: counted before JSON, which may double it.
CONVERSATION_BYTES_MAX: Final = 16 * 1024 * 1024

#: The most characters that are kept of an agent's error texts.
DETAIL_CHARS_MAX: Final = 500

_Document = Annotated[dict[str, msgspec.Raw], msgspec.Meta(max_length=CONFIG_NAMES_MAX)]


class MaskedConfig(NamedTuple):
    """The configuration that an agent runs, secrets masked. `version`: None while none runs. `document`: by name."""

    version: int | None
    document: dict[str, msgspec.Raw]


def read_masked_config(content: bytes) -> MaskedConfig:
    """Raises one of `JSON_ERRORS`."""
    require_object(content)
    document = msgspec.json.decode(content, type=_Document)
    version = msgspec.json.decode(document.get("config_version", b"null"), type=int | None)
    return MaskedConfig(version, document)


class ReportedProblem(NamedTuple):
    """`code` (for programs) and `detail` (for people) come from the agent; None if its answer had none."""

    code: str | None = None
    detail: str | None = None


def read_problem(content: bytes) -> ReportedProblem:
    try:
        problem = msgspec.json.decode(content, type=AgentProblem)
    except JSON_ERRORS:
        return ReportedProblem()
    return ReportedProblem(_printable(problem.code), _printable(problem.detail))


def _printable(text: str) -> str:
    return "".join(character for character in text[:DETAIL_CHARS_MAX] if character.isprintable())
