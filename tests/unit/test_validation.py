"""Invalid requests: each is refused with all of its problems, in FastAPI's order, with its messages and types."""

import json
from typing import Annotated, Any
from uuid import UUID

import httpx
import msgspec
import pytest
from msgspec import Meta

from hydracore.api.errors import RequestInvalid
from hydracore.api.schemas import CreateInstance, IdempotencyKey
from hydracore.api.validation import Header, Incoming, RequestReader, RestOfPath, read_signature
from hydracore.auth import Principal

A_UUID = "198bc4a4-ca9d-4a27-bbcc-83824e04cd08"
JSON_HEADERS = [(b"content-type", b"application/json")]


class Body(msgspec.Struct, kw_only=True):
    name: Annotated[str, Meta(min_length=1, max_length=8)]
    size: Annotated[int, Meta(ge=1)] = 1
    tags: list[str] | None = None
    force: bool = False


async def handler(
    who: Principal,
    *,
    body: Body,
    instance_id: UUID,
    x_count: Annotated[int, Header("X-Count")],
    limit: Annotated[int, Meta(ge=1, le=100)] = 20,
    deep: bool = False,
) -> None:
    raise NotImplementedError


def reader_of(handler: Any, path: str, checks: dict[str, Any] | None = None) -> RequestReader:
    return RequestReader(read_signature(handler, path, callers={Principal}), checks or {})


def scope_of(
    path: dict[str, str], query: str = "", headers: list[tuple[bytes, bytes]] | None = None, raw_path: str = ""
) -> dict[str, Any]:
    return {
        "path_params": path,
        "query_string": query.encode(),
        "headers": JSON_HEADERS if headers is None else headers,
        "raw_path": raw_path.encode(),
    }


@pytest.fixture(scope="module")
def reference() -> Any:
    """The same operation on FastAPI."""
    from tests.pydantic_reference import application  # noqa: PLC0415 - costly

    return application()


GOOD_BODY = '{"name":"x"}'


@pytest.mark.parametrize(
    ("instance_id", "query", "count", "body", "content_type"),
    [
        (A_UUID, "", "1", GOOD_BODY, "application/json"),
        (A_UUID.upper(), "limit=7&deep=yes", "+3", '{"name":"x","size":"5","force":"on"}', "application/json"),
        (A_UUID, "limit=1&limit=2", "1", GOOD_BODY, "application/problem+json; charset=utf-8"),
        (A_UUID, "unknown=1", "1", '{"name":"x","unknown":1}', "application/json"),
        ("nope", "limit=0&deep=maybe", "x", '{"size":0}', "application/json"),
        ("nope", "limit=101", None, '{"name":"","tags":["a",1,null],"force":5}', "application/json"),
        (A_UUID, "limit=", "1.5", '{"name":"123456789","size":1.5}', "application/json"),
        (A_UUID, "", "1", '{"name":"x","size":true}', "application/json"),
        (A_UUID, "limit=1e3", "", '{"name":null,"size":null,"tags":"a","force":null}', "application/json"),
        (A_UUID, "deep=", "1", "[]", "application/json"),
        (A_UUID, "", "1", '"text"', "application/json"),
        (A_UUID, "", "1", "5", "application/json"),
        (A_UUID, "", "1", "null", "application/json"),
        (A_UUID, "", "1", "", "application/json"),
        (A_UUID, "", "1", "{", "application/json"),
        (A_UUID, "", "1", '{"name": x}', "application/json"),
        (A_UUID, "", "1", '{"name":"x"} trailing', "application/json"),
        (A_UUID, "", "1", GOOD_BODY, "Application/JSON; Charset=UTF-8"),
    ],
)
async def test_requests_are_validated_with_the_same_result_and_problems_as_by_fastapi(
    *, reference: Any, instance_id: str, query: str, count: str | None, body: str, content_type: str
) -> None:
    headers = {"content-type": content_type} | ({"x-count": count} if count is not None else {})
    async with httpx.AsyncClient(transport=httpx.ASGITransport(reference), base_url="http://x") as client:
        expected = await client.post(f"/things/{instance_id}?{query}", content=body, headers=headers)
    reader = reader_of(handler, "/things/{instance_id}")
    raw_headers = [(name.encode(), value.encode()) for name, value in headers.items()]

    try:
        arguments = reader.read(scope_of({"instance_id": instance_id}, query, raw_headers), body.encode())
    except RequestInvalid as invalid:
        found: Any = [{"loc": list(each.loc), "msg": each.msg, "type": each.type} for each in invalid.problems]
        status = 422
    else:
        found, status = msgspec.to_builtins(arguments), 200

    answer = expected.json()
    if expected.status_code == 422:
        answer = [{key: problem[key] for key in ("loc", "msg", "type")} for problem in answer["detail"]]
    assert (status, found) == (expected.status_code, answer)


@pytest.mark.parametrize("content_type", ["text/plain", "application/x-www-form-urlencoded"])
async def test_a_body_of_another_content_type_is_refused_with_the_content_type_to_send(
    *, reference: Any, content_type: str
) -> None:
    headers = {"content-type": content_type, "x-count": "1"}
    async with httpx.AsyncClient(transport=httpx.ASGITransport(reference), base_url="http://x") as client:
        answer = await client.post(f"/things/{A_UUID}", content=GOOD_BODY, headers=headers)
    reader = reader_of(handler, "/things/{instance_id}")
    raw_headers = [(name.encode(), value.encode()) for name, value in headers.items()]

    with pytest.raises(RequestInvalid) as raised:
        reader.read(scope_of({"instance_id": A_UUID}, "", raw_headers), GOOD_BODY.encode())

    (found,), (expected,) = raised.value.problems, answer.json()["detail"]
    assert (list(found.loc), found.type) == (expected["loc"], expected["type"])
    assert found.msg == expected["msg"] + "; the Content-Type of the request must be application/json"


def test_a_body_that_is_not_json_does_not_hide_the_other_problems() -> None:
    """FastAPI would report the body alone."""
    reader = reader_of(handler, "/things/{instance_id}")

    with pytest.raises(RequestInvalid) as raised:
        reader.read(scope_of({"instance_id": "nope"}, "limit=0"), b"{'name':'x'}")

    assert [(problem.loc, problem.type) for problem in raised.value.problems] == [
        (("path", "instance_id"), "uuid_parsing"),
        (("query", "limit"), "greater_than_equal"),
        (("header", "x-count"), "missing"),
        (("body", 1), "json_invalid"),
    ]


async def create(
    who: Principal,
    incoming: Incoming,
    body: CreateInstance,
    idempotency_key: Annotated[IdempotencyKey | None, Header("Idempotency-Key")] = None,
) -> None:
    raise NotImplementedError


CHECKS = {
    "region": lambda text: None if text == "local" else "unknown region; known: local",
    "tier": lambda text: None if text == "starter" else "unknown tier; known: starter",
    "preset": lambda text: None if text == "personal_assistant" else "unknown preset; known: personal_assistant",
}
STRING = "Input should be a valid string"
MISSING = "Field required"
SURROGATE = "Input should be a valid string, unable to parse raw data as a unicode string"
NUL = "Value error, text must not contain the NUL character"
ID = r"String should match pattern '^[A-Za-z0-9._:@-]{1,128}\Z'"
KEY = r"String should match pattern '^[^\x00-\x1f\x7f-\x9f]*\Z'"


@pytest.mark.parametrize(
    ("body", "problems"),
    [
        ({}, [("region_id", MISSING, "missing"), ("tier_id", MISSING, "missing")]),
        (
            {"tier_id": "huge", "preset_id": "poet", "agent_name": 5},
            [
                ("agent_name", STRING, "string_type"),
                ("preset_id", "Value error, unknown preset; known: personal_assistant", "value_error"),
                ("region_id", MISSING, "missing"),
                ("tier_id", "Value error, unknown tier; known: starter", "value_error"),
            ],
        ),
        ({"region_id": None}, [("region_id", STRING, "string_type")]),
        ({"region_id": ""}, [("region_id", "Value error, unknown region; known: local", "value_error")]),
        ({"region_id": ["local"]}, [("region_id", STRING, "string_type")]),
        ({"preset_id": None}, [("preset_id", STRING, "string_type")]),
        ({"agent_name": "a\0"}, [("agent_name", NUL, "value_error")]),
        ({"agent_name": "\ud800"}, [("agent_name", SURROGATE, "string_unicode")]),
        (
            {"agent_name": "x" * 10_001},
            [("agent_name", "String should have at most 10000 characters", "string_too_long")],
        ),
        ({"manifest_id": True}, [("manifest_id", STRING, "string_type")]),
        ({"recipe_id": 1.5}, [("recipe_id", STRING, "string_type")]),
        ({"user_display_name": {}}, [("user_display_name", STRING, "string_type")]),
        ({"website_template_slug": []}, [("website_template_slug", STRING, "string_type")]),
        ({"workflow_slugs": "a"}, [("workflow_slugs", "Input should be a valid list", "list_type")]),
        ({"workflow_slugs": {"a": 1}}, [("workflow_slugs", "Input should be a valid list", "list_type")]),
        (
            {"workflow_slugs": ["a", 1, None]},
            [(("workflow_slugs", 1), STRING, "string_type"), (("workflow_slugs", 2), STRING, "string_type")],
        ),
        ({"customer_id": ""}, [("customer_id", ID, "string_pattern_mismatch")]),
        ({"customer_id": "a b"}, [("customer_id", ID, "string_pattern_mismatch")]),
        ({"customer_id": "ann\n"}, [("customer_id", ID, "string_pattern_mismatch")]),
        ({"customer_id": "x" * 129}, [("customer_id", ID, "string_pattern_mismatch")]),
        ({"customer_id": 5}, [("customer_id", STRING, "string_type")]),
        (
            {"idempotency_key": ""},
            [("idempotency_key", "String should have at least 1 character", "string_too_short")],
        ),
        (
            {"idempotency_key": "x" * 256},
            [("idempotency_key", "String should have at most 255 characters", "string_too_long")],
        ),
        ({"idempotency_key": "a\nb"}, [("idempotency_key", KEY, "string_pattern_mismatch")]),
        ({"idempotency_key": 7}, [("idempotency_key", STRING, "string_type")]),
    ],
    ids=lambda value: json.dumps(value)[:40] if isinstance(value, dict) else "",
)
def test_an_invalid_request_for_an_instance_is_refused_with_all_its_problems(
    body: dict[str, Any], problems: list[Any]
) -> None:
    whole = body if "tier_id" in body or not body else {"region_id": "local", "tier_id": "starter", **body}

    with pytest.raises(RequestInvalid) as raised:
        reader_of(create, "/v1/instances", CHECKS).read(scope_of({}), json.dumps(whole).encode())

    expected = [
        (("body", *(where if isinstance(where, tuple) else (where,))), msg, kind) for where, msg, kind in problems
    ]
    assert [tuple(problem) for problem in raised.value.problems] == expected


@pytest.mark.parametrize(
    ("raw", "problem"),
    [
        (b"\xff\xfe\xfa", (("body", 0), "JSON decode error", "json_invalid")),
        (b"[" * 1_000_000, (("body",), "Value error, documents may be 32 levels deep", "value_error")),
        (b'{"a":' + b"9" * 5000 + b"}", (("body", 0), "JSON decode error", "json_invalid")),
        (b"{,}", (("body", 1), "JSON decode error", "json_invalid")),
        (b"   ", (("body", 3), "JSON decode error", "json_invalid")),
    ],
    ids=["utf-8", "nested", "digits", "comma", "blank"],
)
def test_a_body_that_is_not_json_or_too_deeply_nested_is_refused(raw: bytes, problem: tuple[Any, ...]) -> None:
    with pytest.raises(RequestInvalid) as raised:
        reader_of(create, "/v1/instances", CHECKS).read(scope_of({}), raw)

    assert [tuple(each) for each in raised.value.problems] == [problem]


def test_problems_of_header_and_body_are_reported_together() -> None:
    headers = [*JSON_HEADERS, (b"idempotency-key", b"x" * 256)]

    with pytest.raises(RequestInvalid) as raised:
        reader_of(create, "/v1/instances", CHECKS).read(scope_of({}, headers=headers), b"{}")

    assert [problem.loc for problem in raised.value.problems] == [
        ("header", "idempotency-key"),
        ("body", "region_id"),
        ("body", "tier_id"),
    ]


async def poll(who: Principal, key: Annotated[str, RestOfPath()]) -> None:
    raise NotImplementedError


@pytest.mark.parametrize(
    ("written", "key"),
    [
        ("plain", "plain"),
        ("a/b//c/", "a/b//c/"),
        ("a%2Fb%252F", "a/b%2F"),
        ("%C3%BC%20x+y", "ü x+y"),
        ("%ff", "\ufffd"),
        ("a%3Fb%23", "a?b#"),
        ("%2F", "/"),
        ("/a%2F", "/a/"),
    ],
)
def test_a_rest_of_path_parameter_is_read_as_the_client_wrote_it(written: str, key: str) -> None:
    reader = reader_of(poll, "/v1/by-key/{key}")

    assert reader.read(scope_of({"key": "/routed"}, raw_path=f"/v1/by-key/{written}"), b"") == {"key": key}


@pytest.mark.parametrize("way", ["//v1/by-key/", "/v1//by-key%2f", "/%76%31%2Fby%2Dkey/"])
@pytest.mark.parametrize(("written", "key"), [("a//b%2F", "a//b/"), ("//", "//")])
def test_a_rest_of_path_parameter_is_found_however_the_path_before_it_is_written(
    way: str, written: str, key: str
) -> None:
    reader = reader_of(poll, "/v1/by-key/{key}")

    assert reader.read(scope_of({}, raw_path=f"{way}{written}"), b"") == {"key": key}
