"""Operations: the API's endpoints, each declared once beside its handler, and served by Litestar.

A declaration determines the route, the arguments (see `validation`) and the OpenAPI document. Litestar routes, limits
and maps errors. Its own argument handling is not used, because it stops at the first problem of a body, answers in
other forms than the contract's, and takes twice as long as everything else that a read does here.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection, Iterable, Iterator, Mapping
from http import HTTPStatus
from typing import Any, Final, Literal, NamedTuple, TypeVar

import msgspec
from litestar import Request
from litestar.enums import HttpMethod
from litestar.handlers import HTTPRouteHandler
from litestar.types import ASGIApp, Receive, Scope, Send
from structlog.contextvars import bind_contextvars

from hydracore.api.errors import BodyTimeout, BodyTooLarge, ClientGone, Interrupted
from hydracore.api.raw_request import RawHeaders
from hydracore.api.validation import CrossCheck, Handler, Incoming, RequestReader, Signature, read_signature
from hydracore.problems import Check

F = TypeVar("F", bound=Handler)

#: Returns the caller, from a request's headers. Raises what `errors` knows where the caller is not authenticated.
Authenticate = Callable[[RawHeaders], Awaitable[object]]

#: The most seconds that a client may take to send its body.
BODY_TIMEOUT_S: Final = 20.0

_ATTRIBUTE: Final = "__operation__"
_ENCODER: Final = msgspec.json.Encoder()
_CONTENT_TYPE: Final = (b"content-type", b"application/json")


class Declaration(NamedTuple):
    """The arguments of `@operation`.

    - `answer`: the type of the body of a success, and of the statuses in `also`.
    - `errors`: other statuses that it may answer.
    - `body_bytes`: allows bodies of this length even if the setting is lower, where the contract promises to accept
      them.
    - `streams`: whether clients may ask for the answer as server-sent events.
    - `cross_check`: checks parts of a request that are valid each, but not together.
    """

    method: Literal["GET", "POST", "PATCH", "DELETE"]
    path: str
    summary: str
    answer: Any
    status: int
    errors: tuple[int, ...]
    also: tuple[int, ...]
    body_bytes: int
    streams: bool
    cross_check: CrossCheck | None


class Operation(NamedTuple):
    """A declared operation with the handler that serves it."""

    declared: Declaration
    handler: Handler
    signature: Signature


class Answer:
    """An answer that is ready to send: an ASGI application."""

    __slots__ = ("body", "headers", "status")

    def __init__(self, status: int, body: bytes, headers: tuple[tuple[bytes, bytes], ...] = ()) -> None:
        self.status = status
        self.body = body
        self.headers = headers

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002 - ASGI's signature
        headers = [*self.headers]
        if self.status != HTTPStatus.NO_CONTENT:
            headers += [_CONTENT_TYPE, (b"content-length", b"%d" % len(self.body))]
        await send({"type": "http.response.start", "status": self.status, "headers": headers})
        await send({"type": "http.response.body", "body": self.body, "more_body": False})


def operation(
    method: Literal["GET", "POST", "PATCH", "DELETE"],
    path: str,
    summary: str,
    *,
    answer: Any,
    status: int = HTTPStatus.OK,
    errors: tuple[int, ...] = (),
    also: tuple[int, ...] = (),
    body_bytes: int = 0,
    streams: bool = False,
    cross_check: CrossCheck | None = None,
) -> Callable[[F], F]:
    """Declares a coroutine, usually a method, as an operation.

    It returns a struct or a dict, which is sent as JSON, or an ASGI application, which sends the answer itself.
    """

    def declare(handler: F) -> F:
        declared = Declaration(method, path, summary, answer, status, errors, also, body_bytes, streams, cross_check)
        setattr(handler, _ATTRIBUTE, declared)
        return handler

    return declare


def operations_of(*owners: object, callers: Collection[type]) -> Iterator[Operation]:
    """The operations among the methods of `owners`, in the order of their definition."""
    for owner in owners:
        for name in vars(type(owner)):
            handler = getattr(owner, name)
            declared = getattr(handler, _ATTRIBUTE, None)
            if declared is not None:
                yield Operation(declared, handler, read_signature(handler, declared.path, callers=callers))


def route(
    op: Operation, *, callers: Mapping[type, Authenticate], checks: Mapping[str, Check], body_max_bytes: int
) -> HTTPRouteHandler:
    """The Litestar handler of an operation. `callers`: how to authenticate each type of caller."""
    declared, handler, signature = op
    reader = RequestReader(signature, checks, cross_check=declared.cross_check)
    authenticate = callers[signature.who] if signature.who is not None else None
    who_name, incoming_name = signature.who_name, signature.incoming_name
    status = declared.status
    limit = max(body_max_bytes, declared.body_bytes)

    async def answer(request: Request[Any, Any, Any]) -> ASGIApp:
        scope = request.scope
        headers = scope["headers"]
        # Before the request is read: an unauthenticated client must not learn how it should look.
        who = await authenticate(headers) if authenticate is not None else None
        raw_body = b""
        if reader.wants_body:
            raw_body = await read_body(headers, request.receive, limit=limit)
        arguments = reader.read(scope, raw_body)
        if (instance_id := arguments.get("instance_id")) is not None:
            bind_contextvars(instance_id=str(instance_id))
        if authenticate is not None:
            arguments[who_name] = who
        if incoming_name:
            arguments[incoming_name] = Incoming(scope["state"]["request_id"], raw_body, headers)
        result = await handler(**arguments)
        if isinstance(result, msgspec.Struct | dict):
            return Answer(status, _ENCODER.encode(result))
        return result

    async def serve(request: Request[Any, Any, Any]) -> ASGIApp:
        try:
            return await answer(request)
        except asyncio.CancelledError:
            raise Interrupted from None

    methods = [HttpMethod(name) for name in _methods_of(declared.method)]
    return HTTPRouteHandler(_routed_paths(op), http_method=methods, status_code=status)(serve)


def _methods_of(declared: str) -> tuple[str, ...]:
    """The methods that an operation is served by. The server omits the body of an answer to HEAD."""
    return ("GET", "HEAD") if declared == "GET" else (declared,)


def options_routes(served: Iterable[Operation]) -> Iterator[HTTPRouteHandler]:
    """Routes that answer OPTIONS with all methods of a path. Litestar's own have only the first method."""
    methods: dict[str, list[str]] = {}
    for op in served:
        for path in _routed_paths(op):
            methods.setdefault(path, []).extend(_methods_of(op.declared.method))
    for path, found in methods.items():
        answer = Answer(HTTPStatus.NO_CONTENT, b"", ((b"allow", ", ".join([*found, "OPTIONS"]).encode()),))
        yield HTTPRouteHandler(path, http_method=HttpMethod.OPTIONS)(_always(answer))


def _always(answer: Answer) -> Callable[[], Awaitable[ASGIApp]]:
    async def answered() -> ASGIApp:
        return answer

    return answered


def _routed_paths(op: Operation) -> list[str]:
    """The paths for Litestar's router. Parameters are plain strings there, and are converted by `validation`."""
    path = op.declared.path
    before: list[str] = []
    for each in op.signature.inputs:
        if each.source == "path":
            path = path.replace(f"{{{each.name}}}", f"{{{each.name}:{'path' if each.prefix else 'str'}}}")
        if each.prefix:
            # The router strips slashes, so that it would not match a rest of slashes alone.
            before.append(each.prefix.rstrip("/"))
    return [path, *before]


async def read_body(headers: RawHeaders, receive: Receive, *, limit: int) -> bytes:
    """The whole body. Raises `BodyTooLarge`, `BodyTimeout` and `ClientGone`."""
    # The server has checked that the header is a number.
    announced = next((int(value) for name, value in headers if name == b"content-length"), 0)
    body = bytearray()
    try:
        async with asyncio.timeout(BODY_TIMEOUT_S):
            while max(announced, len(body)) <= limit:
                message = await receive()
                if message["type"] != "http.request":
                    raise ClientGone
                body += message.get("body", b"")
                if not message.get("more_body", False) and len(body) <= limit:
                    return bytes(body)
    except TimeoutError:
        raise BodyTimeout(f"The body did not come within {BODY_TIMEOUT_S:g} s") from None
    raise BodyTooLarge(f"The body is larger than {limit} bytes")
