"""What comes over the wire as no client of ours would write it: byte for byte, and the answer to each."""

from __future__ import annotations

import asyncio
import json
from typing import Any, NamedTuple
from uuid import uuid4

import httpx
import psycopg
import pytest

from hydracore import http_protocol
from hydracore.api.edge import PATH_LENGTH_MAX
from hydracore.auth import create_api_key
from hydracore.http_protocol import HEAD_MAX_BYTES
from hydracore.tokens import agent_key
from hydracore.transport import REQUEST_ID
from tests.api_server import MASTER_KEY, Api
from tests.memory import holding_less_than
from tests.use_fixtures import KEY_ID, Used, shared_api_fixture, shared_owner_conn_fixture, shared_used_fixture
from tests.waiting import PATIENCE_S, until

__all__ = ["shared_api_fixture", "shared_owner_conn_fixture", "shared_used_fixture"]

pytestmark = pytest.mark.asyncio(loop_scope="module")

ORDER = {"region_id": "local", "tier_id": "starter"}
GET_AND_STAY = b"GET /health/live HTTP/1.1\r\nHost: x\r\n\r\n"


class Answer(NamedTuple):
    """`content`: what came until the server closed the connection."""

    status: int
    headers: dict[str, str]
    content: bytes

    @property
    def body(self) -> Any:
        return json.loads(self.content)


async def exchange(api: Api, *pieces: bytes) -> Answer:
    """The one answer to what is sent; `pieces` go out one by one."""
    address = httpx.URL(api.url)
    reader, writer = await asyncio.open_connection(address.host, address.port)
    try:
        for piece in pieces:
            writer.write(piece)
            await writer.drain()
        async with asyncio.timeout(PATIENCE_S):
            head = await reader.readuntil(b"\r\n\r\n")
            content = await reader.read()
    finally:
        writer.close()
    status_line, *lines = head.decode("latin-1").strip().split("\r\n")
    headers = dict(line.lower().split(": ", 1) for line in lines)
    return Answer(int(status_line.split()[1]), headers, content)


def request(target: str, *headers: str, method: str = "GET", body: Any = None) -> bytes:
    """A request whose answer ends the connection. `headers` are lines, as they are."""
    content = b"" if body is None else json.dumps(body).encode()
    lines = [f"{method} {target} HTTP/1.1", "Host: x", "Connection: close", *headers]
    if content:
        lines.append(f"Content-Length: {len(content)}")
    return "\r\n".join([*lines, "", ""]).encode("latin-1") + content


def bearer(api: Api) -> str:
    return f"Authorization: {api.token()['Authorization']}"


async def test_blanks_around_a_header_s_value_are_no_part_of_it(
    api: Api, used: Used, owner_conn: psycopg.AsyncConnection
) -> None:
    api_key = await create_api_key(owner_conn, tenant_id="acme", name="backend")
    key, chat = uuid4().hex, f"/v1/instances/{used.instance_id}/chat"

    ordered = [
        await exchange(api, request("/v1/instances", bearer(api), f"Idempotency-Key:{line}", method="POST", body=ORDER))
        for line in (key, f" {key} ", f"\t{key} \t")
    ]
    asked = await exchange(
        api, request(chat, bearer(api), "Idempotency-Key: abc ", method="POST", body={"message": "Hello"})
    )
    blank = await exchange(
        api, request(chat, bearer(api), "Idempotency-Key: \t ", method="POST", body={"message": "Hello"})
    )
    by_key = await exchange(
        api,
        request(
            f"/v1/instances/{used.instance_id}", f"X-Api-Key: {api_key}\t", "X-User-Id: ann ", "X-Request-Id: r-1 "
        ),
    )

    assert {answer.status for answer in ordered} == {202}
    assert len({answer.body["instance_id"] for answer in ordered}) == 1
    assert asked.status == 200, asked
    assert used.agent.calls_of("/api/chat")[-1].headers["idempotency-key"] == "abc"
    assert (blank.status, blank.body["detail"][0]["loc"]) == (422, ["header", "idempotency-key"])
    assert (by_key.status, by_key.headers["x-request-id"]) == (200, "r-1")


@pytest.mark.parametrize("value", ["", "Bearer", "Bearer ", "Basic", "Basic dTpw", "aaaa.bbbb.cccc", "Bearer x"])
async def test_a_lost_token_makes_nobody_the_admin_of_the_key_beside_it(
    api: Api, owner_conn: psycopg.AsyncConnection, value: str
) -> None:
    key = f"X-Api-Key: {await create_api_key(owner_conn, tenant_id='acme', name='backend')}"

    answer = await exchange(api, request("/v1/instances", key, f"Authorization: {value}"))

    assert (answer.status, answer.headers["www-authenticate"]) == (401, "bearer")
    assert (await exchange(api, request("/v1/instances", key))).status == 200


async def test_two_headers_that_say_who_is_asking_say_nothing(
    api: Api, used: Used, owner_conn: psycopg.AsyncConnection
) -> None:
    key = f"X-Api-Key: {await create_api_key(owner_conn, tenant_id='acme', name='backend')}"
    agent = f"Authorization: Bearer {agent_key(MASTER_KEY, used.instance_id, KEY_ID)}"

    answers = [
        await exchange(api, request("/v1/instances", bearer(api), "Authorization: Bearer x")),
        await exchange(api, request("/v1/instances", "Authorization: Bearer x", bearer(api))),
        await exchange(api, request("/v1/instances", key, key)),
        await exchange(api, request("/v1/instances", key, "X-User-Id: ann", "X-User-Id: bob")),
        await exchange(api, request("/v1/agent/heartbeat", agent, "Authorization: Bearer x", method="POST", body={})),
    ]

    assert [answer.status for answer in answers] == [401] * 5
    assert (await exchange(api, request("/v1/agent/heartbeat", agent, method="POST", body={}))).status == 422


async def test_two_keys_of_idempotency_are_none(api: Api, used: Used) -> None:
    keys = ("Idempotency-Key: a", "Idempotency-Key: b")
    chat = f"/v1/instances/{used.instance_id}/chat"

    ordered = await exchange(api, request("/v1/instances", bearer(api), *keys, method="POST", body=ORDER))
    asked = await exchange(api, request(chat, bearer(api), *keys, method="POST", body={"message": "Hello"}))

    for answer in (ordered, asked):
        assert answer.status == 422
        (problem,) = answer.body["detail"]
        assert (problem["loc"], problem["type"]) == (["header", "idempotency-key"], "value_error")
    assert used.agent.calls_of("/api/chat") == []


async def test_what_comes_behind_a_body_says_nothing_of_the_request(
    api: Api, owner_conn: psycopg.AsyncConnection
) -> None:
    key = f"X-Api-Key: {await create_api_key(owner_conn, tenant_id='acme', name='backend')}"
    trailers = f"{bearer(api)}\r\nX-User-Id: bob\r\nIdempotency-Key: {(name := uuid4().hex)}\r\n"

    def chunked(*headers: str) -> bytes:
        head = request("/v1/instances", *headers, "Transfer-Encoding: chunked", method="POST")
        body = json.dumps(ORDER | {"customer_id": "ann"})
        return head + f"{len(body):x}\r\n{body}\r\n0\r\n{trailers}\r\n".encode()

    assert (await exchange(api, chunked())).status == 401
    for who in (key, bearer(api)):
        made = await exchange(api, chunked(who))
        assert made.status == 202, made
        assert made.body["idempotency_key"] != name


@pytest.mark.parametrize("path", ["/v1//instances/by-key/", "/v1/instances/by%2Dkey/", "//v1/instances/by-key%2F"])
async def test_a_key_is_found_however_the_path_to_it_is_written(api: Api, path: str) -> None:
    ordered = await exchange(
        api,
        request("/v1/instances", bearer(api), method="POST", body={**ORDER, "idempotency_key": (key := uuid4().hex)}),
    )

    found = await exchange(api, request(path + key, bearer(api)))

    assert (found.status, found.body["found"]) == (200, True)
    assert found.body["instance_id"] == ordered.body["instance_id"]


async def is_as_any(api: Api, answer: Answer) -> bool:
    """Whether an answer has the headers that those of the application have."""
    usual = (await exchange(api, request("/health/live"))).headers
    same = usual.keys() - {"date", "content-length", "x-request-id"}
    return bool(REQUEST_ID.fullmatch(answer.headers["x-request-id"].encode())) and all(
        answer.headers.get(name) == usual[name] for name in same
    )


def head_of(size: int) -> bytes:
    """The beginning of a request, `size` bytes of many headers, one of which never ends."""
    many = b"GET /health/live HTTP/1.1\r\nHost: x\r\nConnection: close\r\n" + b"X-A: b\r\n" * 100 + b"X-B: "
    return many.ljust(size, b"x")


async def test_a_head_of_a_request_has_a_limit(api: Api) -> None:
    padding = "X-Padding: " + "x" * (HEAD_MAX_BYTES - 1_000)

    too_long = [
        await exchange(api, head_of(HEAD_MAX_BYTES + 1)),
        await exchange(api, head_of(HEAD_MAX_BYTES), b"x"),
        await exchange(api, head_of(HEAD_MAX_BYTES + 100) + b"\r\n\r\n"),
        await exchange(api, b"\r\n" * (HEAD_MAX_BYTES // 2), b"\r\n"),
    ]
    long = await exchange(api, request("/health/live", padding))
    # The body does not count, however much of it comes at once with the head.
    body = await exchange(api, request("/v1/instances", bearer(api), method="POST", body="x" * HEAD_MAX_BYTES))

    for answer in too_long:
        assert (answer.status, answer.body) == (431, {"detail": "Request Header Fields Too Large"})
        assert await is_as_any(api, answer)
    assert (long.status, body.status) == (200, 413)


async def test_a_path_that_is_longer_than_any_is_refused_and_nothing_of_it_is_kept(api: Api) -> None:
    by_key = "/v1/instances/by-key/"
    longest = by_key + "k" * (PATH_LENGTH_MAX - len(by_key))

    asked = [await exchange(api, request(longest + more, bearer(api))) for more in ("", "?limit=1", "k")]
    with holding_less_than(4_000_000):
        # One character of the largest kind has each of the others take as much room.
        strangers = [await exchange(api, request(f"{by_key}{n}{'k' * 60_000}%F0%9F%98%80")) for n in range(20)]

    assert [answer.status for answer in asked] == [200, 200, 414]
    assert {answer.status for answer in strangers} == {414}
    assert strangers[0].body == {"detail": "URI Too Long"}
    assert await is_as_any(api, strangers[0])


async def closed(api: Api, *requests: bytes) -> bytes:
    """What comes behind the answers to all but the last until the server closes the connection, by itself."""
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


async def test_a_head_that_does_not_come_is_not_waited_for(
    api: Api, used: Used, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http_protocol, "HEAD_TIMEOUT_S", 0.05)
    half = b"GET /health/live HTTP/1.1\r\nHost:"
    chat = request(f"/v1/instances/{used.instance_id}/chat", bearer(api), method="POST", body={"message": "Hello"})
    used.agent.may_chat.clear()

    answering = asyncio.create_task(closed(api, chat.replace(b"Connection: close\r\n", b"") + half))
    await until(lambda: used.agent.calls_of("/api/chat"))
    for sent in (b"", b"\r\n", half):
        assert await closed(api, sent) == b""
    for sent in (b"\r\n", half):
        assert await closed(api, GET_AND_STAY, sent) == b""
    # An answer under way is given, whatever else waits behind it.
    used.agent.may_chat.set()

    assert (await answering).startswith(b"HTTP/1.1 200")


WRONG = {
    "a method that there is not": request("/v1/instances", method="FOO"),
    "a version that there is not": b"GET / HTTP/3.0\r\nHost: x\r\n\r\n",
    "TLS": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    "a path that is no ASCII": request("/v1/instances/\xe4"),
    "an absolute URL without a path": request("http://x"),
    "an absolute URL with a port that there is not": request("http://x:99999/v1/instances"),
    "a control character in a header": request("/v1/instances", "Idempotency-Key: a\x01b"),
    "a NUL in a header": request("/v1/instances", "Idempotency-Key: a\0b"),
    "a length that is none": request("/v1/instances", "Content-Length: ten", method="POST"),
    "a negative length": request("/v1/instances", "Content-Length: -1", method="POST"),
    "two lengths": request("/v1/instances", "Content-Length: 3", method="POST", body=ORDER),
    "a length and chunks": request("/v1/instances", "Transfer-Encoding: chunked", method="POST", body=ORDER),
}

#: What Java's HttpClient sends over plain HTTP.
JAVA = (
    "Connection: Upgrade, HTTP2-Settings",
    "HTTP2-Settings: AAEAAEAAAAIAAAABAAMAAABkAAQBAAAAAAUAAEAA",
    "Upgrade: h2c",
    "User-Agent: Java-http-client/21",
)


async def test_a_client_that_would_rather_speak_http_2_is_answered_in_http_1(
    api: Api, caplog: pytest.LogCaptureFixture
) -> None:
    made = await exchange(api, request("/v1/instances", bearer(api), *JAVA, method="POST", body=ORDER))
    asked = await exchange(api, request(f"/v1/instances/{made.body['instance_id']}", bearer(api), *JAVA))

    assert (made.status, asked.status) == (202, 200)
    assert caplog.records == []


@pytest.mark.parametrize("wrong", WRONG.values(), ids=WRONG)
async def test_what_is_no_http_is_a_bad_request(api: Api, wrong: bytes) -> None:
    answer = await exchange(api, wrong)

    assert (answer.status, answer.body) == (400, {"detail": "Bad Request"})
    assert answer.headers["content-type"] == "application/json"
    assert await is_as_any(api, answer)


async def test_chunks_that_are_none_are_a_bad_request_and_nonsense_ends_no_answer_under_way(
    api: Api, used: Used
) -> None:
    begun = request("/v1/instances", bearer(api), "Transfer-Encoding: chunked", method="POST")
    stream = request(
        f"/v1/instances/{used.instance_id}/chat",
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
    # Whoever asked first would take it for a part of theirs.
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
async def test_what_is_odd_is_answered_in_order(api: Api, lines: list[str], path: str, status: int) -> None:
    answer = await exchange(api, request(path, bearer(api), *lines))

    assert answer.status == status, answer
    assert "x-request-id" in answer.headers
    assert answer.body
