"""A stream of server-sent events from an agent to a caller: passed on at once, and always with an ending."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator
from typing import Final

import msgspec
import structlog

from hydracore.agent_answers import CHAT_BYTES_MAX
from hydracore.agent_client import AgentClientError, AgentTimeout
from hydracore.api.agent_link import TOO_SLOW, UNREACHABLE

#: The most bytes of an event. The largest is the last one, which holds the whole answer.
EVENT_BYTES_MAX: Final = CHAT_BYTES_MAX

_log = structlog.get_logger(__name__)

_END_OF_EVENT: Final = b"\n\n"
_ENDINGS: Final = (b"\nevent: done\n", b"\nevent: error\n")


class StreamError(msgspec.Struct, frozen=True):
    """The data of an error event, in the same format as the agent's."""

    code: str
    detail: str


async def complete_events(chunks: AsyncIterator[bytes]) -> AsyncGenerator[bytes]:
    """The bytes of `chunks`, in pieces of whole events. The last event is always an ending.

    Where the agent breaks off, falls silent or stops without an ending, an error event follows. Incomplete events are
    dropped: followed by the error event, they would look complete.
    """
    rest, cause = bytearray(), None
    has_ended = False
    stream_error = StreamError("agent_failed", "The agent broke off its answer")
    try:
        async for chunk in chunks:
            # Only new bytes are searched, because an event may arrive byte by byte.
            unseen = max(0, len(rest) - 1)
            rest += chunk
            end = rest.rfind(_END_OF_EVENT, unseen) + len(_END_OF_EVENT)
            if end >= len(_END_OF_EVENT):
                complete = bytes(rest[:end])
                del rest[:end]
                has_ended = has_ended or has_ending(complete)
                yield complete
            elif len(rest) > EVENT_BYTES_MAX:
                stream_error = StreamError("agent_failed", "The agent sent an invalid event")
                break
    except AgentTimeout as error:
        stream_error, cause = StreamError("agent_timeout", TOO_SLOW), str(error)
    except AgentClientError as error:
        stream_error, cause = StreamError("agent_failed", UNREACHABLE), str(error)
    if not has_ended:
        yield error_event(stream_error, cause=cause)


def has_ending(events: bytes) -> bool:
    return any(ending in b"\n" + events + b"\n" for ending in _ENDINGS)


def error_event(stream_error: StreamError, *, cause: str | None) -> bytes:
    """The error event that ends a stream which cannot go on. Logs it too, with the request's id.

    `cause`: the text of an `AgentClientError`.
    """
    _log.warning("chat_broke_off", code=stream_error.code, reason=stream_error.detail, cause=cause)
    return b"event: error\ndata: %b\n\n" % msgspec.json.encode(stream_error)
