"""uvicorn's HTTP protocol with bounds on heads of requests, and on how long answers wait for clients to read.

A head is read before anybody is authenticated. uvicorn keeps heads of any length, and waits for ever for
the end of a head and for a client that does not read. The rest is bounded elsewhere: bodies where they
are read, idle connections by the keep-alive.
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

from hydracore.slow_readers import SlowReaderGuard

#: The most bytes of the request line and all headers of a request, or of the trailers behind its body.
#: One read of the socket (a quarter of a megabyte) may come on top before the excess is noticed.
HEAD_BYTES_MAX: Final = 64 * 1024

#: How long a head may take to arrive, from the beginning of the connection or from its own first byte on.
HEAD_TIMEOUT_S: Final = 20.0

#: `Upgrade` headers, which ask for another protocol. Java's own client asks for HTTP/2 with every
#: request over plain HTTP. A server that does not offer the protocol ignores the header (RFC 9110,
#: section 7.8); our parser would take the body for the other protocol.
_UPGRADE: Final = re.compile(rb"\r\nupgrade:[^\r\n]*(?=\r\n)", re.IGNORECASE)

#: HTTP versions without chunked bodies: those before 1.1.
_UNCHUNKED_VERSIONS: Final = frozenset({"0.9", "1.0"})

#: Answers are private JSON: browsers must not store them, guess their type, or show them in frames.
_SECURITY_HEADERS: Final = (
    (b"cache-control", b"no-store"),
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
    (b"referrer-policy", b"no-referrer"),
    (b"content-security-policy", b"default-src 'none'; frame-ancestors 'none'"),
)


def new_request_id() -> str:
    return secrets.token_hex(16)


def common_headers(request_id: str) -> tuple[tuple[bytes, bytes], ...]:
    """The headers of every answer: the id of the request, and what browsers have to observe."""
    return (b"x-request-id", request_id.encode()), *_SECURITY_HEADERS


class _Refused(Exception):
    """Raised in a callback of the parser, to refuse the request."""


class _UnchunkedCycle(RequestResponseCycle):
    """Answers clients that may not know chunked bodies (RFC 9112, section 6.1).

    A body of unknown length ends with the connection, which uvicorn closes after every answer to HTTP/1.0.
    """

    #: Whether the answer has a `Content-Length`.
    _has_length = True

    async def send(self, message: Any) -> None:
        if message["type"] == "http.response.start":
            if all(name.lower() != b"content-length" for name, _ in message.get("headers", ())):
                self.chunked_encoding = False
                self._has_length = False
        elif message["type"] == "http.response.body" and not self._has_length:
            # uvicorn checks each part against the expected length: any length is right.
            self.expected_content_length = len(message.get("body", b""))
        await super().send(message)


class BoundedProtocol(HttpToolsProtocol):
    """Answers heads that are too long with 431 and what is not HTTP with 400, and closes the connection.

    The body of such an answer is `{"detail": ...}`. Where an answer to an earlier request is still due,
    the connection is closed after that answer, without a 431 or 400. A connection on which no head
    arrives in time, or whose client does not read the answers, is closed without an answer.
    """

    slow_reader_guard: SlowReaderGuard

    #: The bytes received since the last head ended, or since the last bytes that were known to belong to a body.
    _pending = 0
    _in_head = True
    _in_body = False
    #: All bytes since the current head began, with those that came behind it in the same read. None
    #: where its first byte came in one read with something before it.
    _since_head_began: bytes | None = b""
    #: Bytes that a new parser has to parse again, after `Upgrade` headers were removed. None where there are none.
    _to_reparse: bytes | None = None
    _refusal = HTTPStatus.BAD_REQUEST
    #: The last request that was received completely, and whether the bytes after it were refused.
    _last_complete: RequestResponseCycle | None = None
    _is_refusing = False
    _head_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:
        super().connection_made(transport)
        self.slow_reader_guard = SlowReaderGuard(transport, self.loop)
        self._start_head_timer()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_head_timer()
        self.slow_reader_guard.end()
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        super().pause_writing()
        self.slow_reader_guard.begin()

    def resume_writing(self) -> None:
        super().resume_writing()
        if not self.transport.is_closing():
            self.slow_reader_guard.end()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self.transport.is_closing():
            self._watch_unread()

    def timeout_keep_alive_handler(self) -> None:
        if self.flow.write_paused and not self.transport.is_closing():
            # The connection is not idle as long as its client reads the answer.
            self.timeout_keep_alive_task = self.loop.call_later(
                self.timeout_keep_alive, self.timeout_keep_alive_handler
            )
        else:
            self._close()

    def data_received(self, data: bytes) -> None:
        if self._is_refusing:
            # Further bytes are dropped, so that they take no memory while the answer is sent.
            return
        self._pending += len(data)
        if not (self._in_head or self._in_body):
            self._since_head_began = b""
        if self._since_head_began is not None:
            self._since_head_began += data
        super().data_received(data)
        if self._to_reparse is not None:
            data, self._to_reparse = self._to_reparse, None
            self.parser = HttpRequestParser(self)
            self.parser.set_dangerous_leniencies(lenient_data_after_close=True)  # as uvicorn's
            super().data_received(data)
        if self.transport.is_closing():
            return
        if self._pending > HEAD_BYTES_MAX:
            self._refuse(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE)
        elif self._head_timer is None and (self._in_head or self._is_idle_without_timer()):
            self._start_head_timer()

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._in_head = True

    def on_header(self, name: bytes, value: bytes) -> None:
        # A field after the body is a trailer and no header (RFC 9110, section 6.5.1). It is dropped,
        # because no proxy has checked it.
        if not self._in_body:
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        # Most of the bytes that came with the head may belong to the body.
        if self._pending > HEAD_BYTES_MAX and self._head_bytes() > HEAD_BYTES_MAX:
            self._refusal = HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE
            raise _Refused
        assert self.parser is not None, "the parser calls this"
        if self.parser.should_upgrade() and self._has_body():
            # The parser would take the body for the other protocol. The body would be lost, or parsed as
            # the next request.
            self._to_reparse = None if self._since_head_began is None else _without_upgrade(self._since_head_began)
            if self._to_reparse is None:
                raise _Refused
            return
        self._pending = 0
        self._since_head_began = None
        self._in_head = False
        self._in_body = True
        self._stop_head_timer()
        super().on_headers_complete()
        if self.scope["http_version"] in _UNCHUNKED_VERSIONS:
            # uvicorn has made a `RequestResponseCycle`. Its answer begins only after this.
            self.cycle.__class__ = _UnchunkedCycle

    def on_body(self, body: bytes) -> None:
        self._pending = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        if self._to_reparse is None:
            self._in_body = False
            self._last_complete = self.cycle
            super().on_message_complete()

    def _unsupported_upgrade_warning(self) -> None:
        """Logs nothing: asking for another protocol is no mistake."""

    def send_400_response(self, msg: str) -> None:  # noqa: ARG002 - uvicorn's words are not ours
        """Called by uvicorn where the parser, or one of its callbacks, raises an error."""
        self._refuse(self._refusal)

    def _refuse(self, status: HTTPStatus) -> None:
        if self._last_complete is not None and not self._last_complete.response_complete:
            # Answers come in the order of their requests, so that the client would take this one for
            # that request's. Instead the connection is closed after that answer.
            self._last_complete.keep_alive = False
            self._is_refusing = True
            return
        # An answer that has begun cannot be replaced by another.
        if not (self._is_answering() and self.cycle.response_started):
            body = json.dumps({"detail": status.phrase}).encode()
            head = b"content-type: application/json\r\ncontent-length: %d\r\nconnection: close\r\n" % len(body)
            # The id is not the caller's: a request that cannot be parsed may have none, or two.
            added = b"".join(b"%b: %b\r\n" % header for header in common_headers(new_request_id()))
            self.transport.write(STATUS_LINE[status] + head + added + b"\r\n" + body)
        self._close()

    def _head_bytes(self) -> int:
        """The bytes of the current head that are parsed so far, with the colon, a blank and the end of each line."""
        return len(self.url) + sum(len(name) + len(value) + 4 for name, value in self.headers)

    def _has_body(self) -> bool:
        lengths = {b"content-length", b"transfer-encoding"}
        return any(name in lengths and value != b"0" for name, value in self.headers)

    def _is_answering(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete  # pyright: ignore[reportUnnecessaryComparison] - there from the first request on

    def _is_idle_without_timer(self) -> bool:
        """Whether no request is under way and no keep-alive timer runs.

        Bytes that begin no new head, such as the rest of a body or blank lines, end the keep-alive.
        """
        return not self._is_answering() and self.timeout_keep_alive_task is None

    def _start_head_timer(self) -> None:
        self._head_timer = self.loop.call_later(HEAD_TIMEOUT_S, self._on_head_timeout)

    def _stop_head_timer(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _on_head_timeout(self) -> None:
        if self._is_answering():
            # Nothing is read during an answer, so that the rest of the next head may have arrived already.
            self._start_head_timer()
        else:
            self._close()

    def _close(self) -> None:
        """Close the transport, which ends once the client has read everything, and watch that the client does."""
        self.transport.close()
        self._watch_unread()

    def _watch_unread(self) -> None:
        # This is also called after the connection has been lost, by a timer or at the end of an answer.
        if self in self.connections:
            self.slow_reader_guard.begin()


def _without_upgrade(received: bytes) -> bytes | None:
    """`received` without the `Upgrade` headers of the complete head at its beginning; None where none is found there."""
    end = received.index(b"\r\n\r\n") + 2
    head, removed = _UPGRADE.subn(b"", received[:end])
    return head + received[end:] if removed else None
