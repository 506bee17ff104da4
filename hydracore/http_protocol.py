"""HTTP as our servers read it: uvicorn's protocol, with bounds on what a stranger may send before anybody is asked, and on how long
answers wait for their readers.

uvicorn keeps heads of any length, and waits for their ends for ever, and for readers too. What is no head is bounded elsewhere: bodies by whoever
reads them, idle connections by the keep-alive.
"""

from __future__ import annotations

import asyncio
import json
import re
import secrets
from http import HTTPStatus
from typing import Any, Final

from httptools import HttpRequestParser
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle

from hydracore.unread import Unread

#: The request line and all headers of a request, or the trailers behind its body. What is read from a socket at once
#: (a quarter of a megabyte) may come on top before it is noticed.
HEAD_MAX_BYTES: Final = 64 * 1024

#: How long a head may take, from the connection or from its first byte on.
HEAD_TIMEOUT_S: Final = 20.0

#: Wishes for another protocol. Java's own client has one for HTTP/2 with every request over plain HTTP. A server that does not
#: offer it goes on as if nothing was said (RFC 9110, section 7.8); our parser would take the body for the other protocol.
_UPGRADE: Final = re.compile(rb"\r\nupgrade:[^\r\n]*(?=\r\n)", re.IGNORECASE)

#: What came before HTTP/1.1.
_WITHOUT_CHUNKS: Final = frozenset({"0.9", "1.0"})

#: Answers are JSON about somebody's instances: not to be stored, guessed at, or framed.
_SECURITY_HEADERS: Final = (
    (b"cache-control", b"no-store"),
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
    (b"referrer-policy", b"no-referrer"),
    (b"content-security-policy", b"default-src 'none'; frame-ancestors 'none'"),
)


def new_request_id() -> str:
    return secrets.token_hex(16)


def headers_of_all(request_id: str) -> tuple[tuple[bytes, bytes], ...]:
    """What every answer carries: its id, and what browsers heed."""
    return (b"x-request-id", request_id.encode()), *_SECURITY_HEADERS


class _Refused(Exception):
    """Ends the parsing of a request."""


class _UnchunkedCycle(RequestResponseCycle):
    """Answers whoever may not know chunks (RFC 9112, section 6.1): a body of unknown length ends with the connection, which uvicorn
    ends behind every answer to HTTP/1.0."""

    #: Whether the answer's length was told.
    _is_measured = True

    async def send(self, message: Any) -> None:
        if message["type"] == "http.response.start":
            if all(name.lower() != b"content-length" for name, _ in message.get("headers", ())):
                self.chunked_encoding = False
                self._is_measured = False
        elif message["type"] == "http.response.body" and not self._is_measured:
            # As much as comes is right.
            self.expected_content_length = len(message.get("body", b""))
        await super().send(message)


class BoundedProtocol(HttpToolsProtocol):
    """Answers heads that are too long with 431 and what is no HTTP with 400, both as `{"detail": ...}`, and ends the connection.

    Where answers to earlier requests are still owed, the connection ends behind those, without a 431 or 400. A connection on which no
    head comes, or whose answers are not read, is ended without a word.
    """

    unread: Unread

    #: How many bytes came since the last end of a head, or the last that were known to be of a body.
    _pending = 0
    _in_head = True
    _in_body = False
    #: All bytes since the head under way began, with whatever came behind it in the same read. None where its first byte came in
    #: one read with something else.
    _begun: bytes | None = b""
    #: What is to be read anew, by another parser.
    _anew: bytes | None = None
    _refusal = HTTPStatus.BAD_REQUEST
    #: The last request that came as a whole, and whether whatever came behind it was refused.
    _whole: RequestResponseCycle | None = None
    _is_last = False
    _head_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:
        super().connection_made(transport)
        self.unread = Unread(transport, self.loop)
        self._limit_wait()

    def connection_lost(self, exc: Exception | None) -> None:
        self._end_wait()
        self.unread.end()
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        super().pause_writing()
        self.unread.begin()

    def resume_writing(self) -> None:
        super().resume_writing()
        if not self.transport.is_closing():
            self.unread.end()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self.transport.is_closing():
            self._watch_the_rest()

    def timeout_keep_alive_handler(self) -> None:
        if self.flow.write_paused and not self.transport.is_closing():
            # It is not idle as long as the answer is being read.
            self.timeout_keep_alive_task = self.loop.call_later(
                self.timeout_keep_alive, self.timeout_keep_alive_handler
            )
        else:
            self._close()

    def data_received(self, data: bytes) -> None:
        if self._is_last:
            # Not even kept, however long the answer takes.
            return
        self._pending += len(data)
        if not (self._in_head or self._in_body):
            self._begun = b""
        if self._begun is not None:
            self._begun += data
        super().data_received(data)
        if self._anew is not None:
            data, self._anew = self._anew, None
            self.parser = HttpRequestParser(self)
            self.parser.set_dangerous_leniencies(lenient_data_after_close=True)  # as uvicorn's
            super().data_received(data)
        if self.transport.is_closing():
            return
        if self._pending > HEAD_MAX_BYTES:
            self._refuse(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE)
        elif self._head_timer is None and (self._in_head or self._is_idle_without_limit()):
            self._limit_wait()

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._in_head = True

    def on_header(self, name: bytes, value: bytes) -> None:
        # What comes behind a body is a trailer and no header (RFC 9110, section 6.5.1): no proxy has looked at it.
        if not self._in_body:
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        # Most of what came with the head may be of its body.
        if self._pending > HEAD_MAX_BYTES and self._head_bytes() > HEAD_MAX_BYTES:
            self._refusal = HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE
            raise _Refused
        assert self.parser is not None, "it is what calls this"
        if self.parser.should_upgrade() and self._has_body():
            # The parser takes the body for the other protocol, which is not offered: it would be lost, or be the next request.
            self._anew = None if self._begun is None else _without_upgrade(self._begun)
            if self._anew is None:
                raise _Refused
            return
        self._pending = 0
        self._begun = None
        self._in_head = False
        self._in_body = True
        self._end_wait()
        super().on_headers_complete()
        if self.scope["http_version"] in _WITHOUT_CHUNKS:
            # uvicorn makes its own; the answer begins after this.
            self.cycle.__class__ = _UnchunkedCycle

    def on_body(self, body: bytes) -> None:
        self._pending = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        if self._anew is None:
            self._in_body = False
            self._whole = self.cycle
            super().on_message_complete()

    def _unsupported_upgrade_warning(self) -> None:
        """Silent: to wish for another protocol is no mistake."""

    def send_400_response(self, msg: str) -> None:  # noqa: ARG002 - uvicorn's words are not ours
        """Called for whatever the parser, or a callback, does not take."""
        self._refuse(self._refusal)

    def _refuse(self, status: HTTPStatus) -> None:
        if self._whole is not None and not self._whole.response_complete:
            # Answers come in the order of their requests, so this one would be taken for that request's. The connection ends behind
            # that answer instead.
            self._whole.keep_alive = False
            self._is_last = True
            return
        # What has begun of an answer cannot become another one.
        if not (self._is_answering() and self.cycle.response_started):
            body = json.dumps({"detail": status.phrase}).encode()
            head = b"content-type: application/json\r\ncontent-length: %d\r\nconnection: close\r\n" % len(body)
            # The id is never the caller's own: what cannot be read may have none, or two.
            added = b"".join(b"%b: %b\r\n" % header for header in headers_of_all(new_request_id()))
            self.transport.write(STATUS_LINE[status] + head + added + b"\r\n" + body)
        self._close()

    def _head_bytes(self) -> int:
        """How long the head that is being read is, as far as it is parsed: of each line also the colon, a blank and the line's end."""
        return len(self.url) + sum(len(name) + len(value) + 4 for name, value in self.headers)

    def _has_body(self) -> bool:
        lengths = {b"content-length", b"transfer-encoding"}
        return any(name in lengths and value != b"0" for name, value in self.headers)

    def _is_answering(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete  # pyright: ignore[reportUnnecessaryComparison] - there from the first request on

    def _is_idle_without_limit(self) -> bool:
        """Whether something came after an answer that is no new head: the rest of a body, or blank lines. The keep-alive
        has ended with it."""
        return not self._is_answering() and self.timeout_keep_alive_task is None

    def _limit_wait(self) -> None:
        self._head_timer = self.loop.call_later(HEAD_TIMEOUT_S, self._give_up)

    def _end_wait(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _give_up(self) -> None:
        if self._is_answering():
            # Nothing is read during an answer, so the next head may have come already.
            self._limit_wait()
        else:
            self._close()

    def _close(self) -> None:
        """The transport closes once everything is read, however slowly that is: hence the watch."""
        self.transport.close()
        self._watch_the_rest()

    def _watch_the_rest(self) -> None:
        # This is also called after the connection has been lost, by a timer or at the end of an answer.
        if self in self.connections:
            self.unread.begin()


def _without_upgrade(begun: bytes) -> bytes | None:
    """`begun`, which has a whole head at its beginning, without the wishes in that head; None where there is none to be found."""
    end = begun.index(b"\r\n\r\n") + 2
    head, wishes = _UPGRADE.subn(b"", begun[:end])
    return head + begun[end:] if wishes else None
