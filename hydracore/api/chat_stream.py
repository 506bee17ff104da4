"""A stream of server-sent events from an agent to a caller: passed on as it comes, and never ended without a word."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator
from typing import Final

import msgspec
import structlog

from hydracore.api.agent_link import TOO_SLOW, UNREACHABLE
from hydracore.vps import VpsError, VpsTimeout
from hydracore.vps_answers import CHAT_MAX_BYTES

#: What an event may have in bytes; the largest is the last one, which holds the whole answer.
EVENT_BYTES_MAX: Final = CHAT_MAX_BYTES

_log = structlog.get_logger(__name__)

_END_OF_EVENT: Final = b"\n\n"
_ENDINGS: Final = (b"\nevent: done\n", b"\nevent: error\n")


class Trouble(msgspec.Struct, frozen=True):
    """What an error event says, in the agent's own shape."""

    code: str
    detail: str


async def whole_events(chunks: AsyncIterator[bytes]) -> AsyncGenerator[bytes]:
    """The bytes of `chunks`, cut between events only; at the end always an event that is an ending.

    Where the agent breaks off, falls silent or stops without an ending, the caller gets an error event in its place:
    half an event could not be told from a whole one with the error behind it.
    """
    rest, cause = bytearray(), None
    has_ended = False
    trouble = Trouble("agent_failed", "The agent broke off its answer")
    try:
        async for chunk in chunks:
            # An event may come byte by byte: what was gone through is not gone through again with each of them.
            unseen = max(0, len(rest) - 1)
            rest += chunk
            end = rest.rfind(_END_OF_EVENT, unseen) + len(_END_OF_EVENT)
            if end >= len(_END_OF_EVENT):
                whole = bytes(rest[:end])
                del rest[:end]
                has_ended = has_ended or has_ending(whole)
                yield whole
            elif len(rest) > EVENT_BYTES_MAX:
                trouble = Trouble("agent_failed", "The agent sent something that is no event")
                break
    except VpsTimeout as error:
        trouble, cause = Trouble("agent_timeout", TOO_SLOW), str(error)
    except VpsError as error:
        trouble, cause = Trouble("agent_failed", UNREACHABLE), str(error)
    if not has_ended:
        yield broken_off(trouble, cause=cause)


def has_ending(events: bytes) -> bool:
    return any(ending in b"\n" + events + b"\n" for ending in _ENDINGS)


def broken_off(trouble: Trouble, *, cause: str | None) -> bytes:
    """The event that ends a stream which cannot go on; its request id leads to the line that is logged of it.

    `cause`: what a `VpsError` said.
    """
    _log.warning("chat_broke_off", code=trouble.code, reason=trouble.detail, cause=cause)
    return b"event: error\ndata: %b\n\n" % msgspec.json.encode(trouble)
