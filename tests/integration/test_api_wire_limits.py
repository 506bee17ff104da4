"""Requests that are too long, too slow or no HTTP, byte for byte, and the answer to each."""

from __future__ import annotations

import asyncio

import httpx
import pytest

from hydracore import http_protocol
from hydracore.api.edge import PATH_LENGTH_MAX
from hydracore.http_protocol import HEAD_BYTES_MAX
from hydracore.transport import REQUEST_ID
from tests.api_server import Api
from tests.instance_fixtures import (
    RunningInstance,
    shared_api_fixture,
    shared_instance_fixture,
    shared_owner_conn_fixture,
)
from tests.memory import allocating_less_than
from tests.waiting import PATIENCE_S, until
from tests.wire import INSTANCE_REQUEST, Answer, bearer, exchange, request

__all__ = ["shared_api_fixture", "shared_instance_fixture", "shared_owner_conn_fixture"]

pytestmark = pytest.mark.asyncio(loop_scope="module")

GET_AND_STAY = b"GET /health/live HTTP/1.1\r\nHost: x\r\n\r\n"


async def has_the_usual_headers(api: Api, answer: Answer) -> bool:
    """Whether an answer has the headers that answers of the application have."""
    usual = (await exchange(api, request("/health/live"))).headers
    same = usual.keys() - {"date", "content-length", "x-request-id"}
    return bool(REQUEST_ID.fullmatch(answer.headers["x-request-id"].encode())) and all(
        answer.headers.get(name) == usual[name] for name in same
    )


def head_of(size: int) -> bytes:
    """The beginning of a request, `size` bytes of many headers, one of which never ends."""
    many = b"GET /health/live HTTP/1.1\r\nHost: x\r\nConnection: close\r\n" + b"X-A: b\r\n" * 100 + b"X-B: "
    return many.ljust(size, b"x")


async def test_a_request_head_over_the_limit_gets_431(api: Api) -> None:
    padding = "X-Padding: " + "x" * (HEAD_BYTES_MAX - 1_000)

    too_long = [
        await exchange(api, head_of(HEAD_BYTES_MAX + 1)),
        await exchange(api, head_of(HEAD_BYTES_MAX), b"x"),
        await exchange(api, head_of(HEAD_BYTES_MAX + 100) + b"\r\n\r\n"),
        await exchange(api, b"\r\n" * (HEAD_BYTES_MAX // 2), b"\r\n"),
    ]
    long = await exchange(api, request("/health/live", padding))
    # The body does not count, however much of it comes at once with the head.
    body = await exchange(api, request("/v1/instances", bearer(api), method="POST", body="x" * HEAD_BYTES_MAX))

    for answer in too_long:
        assert (answer.status, answer.body) == (431, {"detail": "Request Header Fields Too Large"})
        assert await has_the_usual_headers(api, answer)
    assert (long.status, body.status) == (200, 413)


async def test_a_path_over_the_limit_gets_414_and_is_not_kept_in_memory(api: Api) -> None:
    by_key = "/v1/instances/by-key/"
    longest = by_key + "k" * (PATH_LENGTH_MAX - len(by_key))

    asked = [await exchange(api, request(longest + more, bearer(api))) for more in ("", "?limit=1", "k")]
    with allocating_less_than(4_000_000):
        # A text with one such character takes four bytes of memory for each of its characters.
        strangers = [await exchange(api, request(f"{by_key}{n}{'k' * 60_000}%F0%9F%98%80")) for n in range(20)]

    assert [answer.status for answer in asked] == [200, 200, 414]
    assert {answer.status for answer in strangers} == {414}
    assert strangers[0].body == {"detail": "URI Too Long"}
    assert await has_the_usual_headers(api, strangers[0])


async def closed(api: Api, *requests: bytes) -> bytes:
    """What the server sends for the last request, until it closes the connection by itself."""
    address = httpx.URL(api.url)
    reader, writer = await asyncio.open_connection(address.host, address.port)
    try:
        async with asyncio.timeout(PATIENCE_S):
            for sent in requests[:-1]:
                writer.write(sent)
                await reader.readuntil(b"}")
            writer.write(requests[-1])
            return await reader.read()
    finally:
        writer.close()


async def test_a_connection_whose_request_head_does_not_arrive_in_time_is_closed(
    api: Api, instance: RunningInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http_protocol, "HEAD_TIMEOUT_S", 0.05)
    half = b"GET /health/live HTTP/1.1\r\nHost:"
    chat = request(f"/v1/instances/{instance.instance_id}/chat", bearer(api), method="POST", body={"message": "Hello"})
    instance.agent.may_chat.clear()

    answering = asyncio.create_task(closed(api, chat.replace(b"Connection: close\r\n", b"") + half))
    await until(lambda: instance.agent.calls_of("/api/chat"))
    for sent in (b"", b"\r\n", half):
        assert await closed(api, sent) == b""
    for sent in (b"\r\n", half):
        assert await closed(api, GET_AND_STAY, sent) == b""
    # An answer in progress is given, whatever else waits behind it.
    instance.agent.may_chat.set()

    assert (await answering).startswith(b"HTTP/1.1 200")


WRONG = {
    "an unknown method": request("/v1/instances", method="FOO"),
    "an unknown version": b"GET / HTTP/3.0\r\nHost: x\r\n\r\n",
    "TLS": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    "a path that is not ASCII": request("/v1/instances/\xe4"),
    "an absolute URL without a path": request("http://x"),
    "an absolute URL with an impossible port": request("http://x:99999/v1/instances"),
    "a control character in a header": request("/v1/instances", "Idempotency-Key: a\x01b"),
    "a NUL in a header": request("/v1/instances", "Idempotency-Key: a\0b"),
    "a length that is not a number": request("/v1/instances", "Content-Length: ten", method="POST"),
    "a negative length": request("/v1/instances", "Content-Length: -1", method="POST"),
    "two lengths": request("/v1/instances", "Content-Length: 3", method="POST", body=INSTANCE_REQUEST),
    "a length and chunks": request("/v1/instances", "Transfer-Encoding: chunked", method="POST", body=INSTANCE_REQUEST),
}

#: What Java's HttpClient sends over plain HTTP.
JAVA = (
    "Connection: Upgrade, HTTP2-Settings",
    "HTTP2-Settings: AAEAAEAAAAIAAAABAAMAAABkAAQBAAAAAAUAAEAA",
    "Upgrade: h2c",
    "User-Agent: Java-http-client/21",
)


async def test_a_client_that_offers_http_2_is_answered_in_http_1(api: Api, caplog: pytest.LogCaptureFixture) -> None:
    made = await exchange(api, request("/v1/instances", bearer(api), *JAVA, method="POST", body=INSTANCE_REQUEST))
    asked = await exchange(api, request(f"/v1/instances/{made.body['instance_id']}", bearer(api), *JAVA))

    assert (made.status, asked.status) == (202, 200)
    assert caplog.records == []


@pytest.mark.parametrize("wrong", WRONG.values(), ids=WRONG)
async def test_malformed_http_is_a_bad_request(api: Api, wrong: bytes) -> None:
    answer = await exchange(api, wrong)

    assert (answer.status, answer.body) == (400, {"detail": "Bad Request"})
    assert answer.headers["content-type"] == "application/json"
    assert await has_the_usual_headers(api, answer)


async def test_malformed_chunks_are_a_bad_request_and_later_nonsense_ends_no_answer_in_progress(
    api: Api, instance: RunningInstance
) -> None:
    begun = request("/v1/instances", bearer(api), "Transfer-Encoding: chunked", method="POST")
    stream = request(
        f"/v1/instances/{instance.instance_id}/chat",
        bearer(api),
        "Accept: text/event-stream",
        method="POST",
        body={"message": "Hello"},
    )

    in_a_body = await exchange(api, begun + b"3\r\n{}\n\r\n", b"zz\r\n")
    behind_a_request = await closed(api, stream.replace(b"Connection: close\r\n", b"") + b"nonsense\r\n\r\n")

    assert in_a_body.status == 400
    assert behind_a_request.startswith(b"HTTP/1.1 200 ")
    assert b"event: done" in behind_a_request
    # The client would take a second answer for a part of the first.
    assert behind_a_request.count(b"HTTP/1.1 ") == 1


@pytest.mark.parametrize(
    ("lines", "path", "status"),
    [
        (["Expect: 200-ok"], "/v1/instances", 417),
        (["Expect: 100-Continue"], "/v1/instances", 200),
        (["Idempotency-Key: \xff\xfe\x80"], "/v1/instances", 200),
        (["X-Api-Key: \xff\xfe"], "/v1/instances", 200),
        (["X-Request-Id: \xff"], "/v1/instances", 200),
        ([], "http://elsewhere.example/v1/instances", 200),
        ([], "/v1/instances/%00", 422),
        ([], "/v1/instances/by-key/%00", 422),
        ([], "/v1/instances/%zz", 422),
        ([], "/v1/instances/%", 422),
        ([], "/v1/instances/%ff", 422),
        ([], "/v1/instances/%c3%28", 422),
        ([], "/v1/instances/a%2fb", 404),
        ([], "/v1/instances/by-key/%ff%zz%2f", 200),
        ([], "/v1/instances?cursor=%00", 422),
        ([], "/v1/instances?limit=%zz", 422),
        ([], "*", 404),
    ],
    ids=str,
)
async def test_unusual_requests_get_a_regular_answer(api: Api, lines: list[str], path: str, status: int) -> None:
    answer = await exchange(api, request(path, bearer(api), *lines))

    assert answer.status == status, answer
    assert "x-request-id" in answer.headers
    assert answer.body
