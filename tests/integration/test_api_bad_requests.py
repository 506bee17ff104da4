"""The answers to invalid requests, word for word (`tests/corpus/bad-requests.txt`)."""

import re
from collections.abc import AsyncGenerator, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import pytest
import pytest_asyncio

from hydracore.api.agent_gate import CallingAgent, ReportingAgent
from hydracore.api.operations import Operation
from tests.api_server import every_operation
from tests.callers import Callers, open_callers
from tests.services import Services

pytestmark = pytest.mark.asyncio(loop_scope="module")

CORPUS = Path(__file__).parents[1] / "corpus" / "bad-requests.txt"
OPERATIONS = every_operation()
ON_AN_INSTANCE = [op for op in OPERATIONS if "{instance_id}" in op.declared.path]
WITH_A_BODY = [op for op in OPERATIONS if any(each.source == "body" for each in op.signature.inputs)]


class Bad(NamedTuple):
    """`problems`: as the corpus writes them, in order."""

    method: str
    url: str
    headers: dict[str, str]
    body: str | None
    problems: list[str]


def read_corpus() -> Iterator[Bad]:
    for block in CORPUS.read_text().split("\n\n")[1:]:
        first, *lines = re.sub(r"<(\d+) times (.*?)>", lambda found: found[2] * int(found[1]), block).splitlines()
        method, _, url = first.partition(" ")
        bad = Bad(method, url, {}, None, [])
        for line in lines:
            if line.startswith("> "):
                bad = bad._replace(body=line[2:])
            elif line.startswith("- "):
                bad.problems.append(line[2:])
            else:
                name, _, value = line.partition(": ")
                bad.headers[name] = value
        yield bad


CASES = list(read_corpus())
NAMES = [f"{number} {bad.method} {bad.url[:60]}" for number, bad in enumerate(CASES, 1)]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def callers(services: Services) -> AsyncGenerator[Callers]:
    async with open_callers(services) as opened:
        yield opened


def shown(problem: dict[str, Any]) -> str:
    assert set(problem) == {"loc", "msg", "type"}
    first, *rest = problem["loc"]
    place = first + "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in rest)
    return f"{place}: {problem['msg']} ({problem['type']})"


def operation_of(method: str, url: str) -> Operation:
    """The operation that serves a request: the one with the fewest parameters in its path."""
    path = url.partition("?")[0]
    found = [
        op
        for op in OPERATIONS
        if op.declared.method == method and re.fullmatch(re.sub(r"{\w+}", "[^/]+", op.declared.path), path)
    ]
    return min(found, key=lambda op: op.declared.path.count("{"))


async def ask(
    callers: Callers, op: Operation, url: str, *, body: bytes = b"", headers: dict[str, str] | None = None
) -> httpx.Response:
    """As a caller that may use the operation."""
    who = "agent" if op.signature.who in {CallingAgent, ReportingAgent} else "admin" if "/admin/" in url else "owner"
    known = {"Content-Type": "application/json", **callers.headers[who], **(headers or {})}
    return await callers.api.client.request(op.declared.method, url, content=body, headers=known)


@pytest.mark.parametrize("bad", CASES, ids=NAMES)
async def test_every_problem_of_a_bad_request_is_reported_word_for_word_and_nothing_changes(
    callers: Callers, bad: Bad
) -> None:
    here = str(callers.instance.instance_id)
    before = await callers.side_effects()

    answer = await ask(
        callers,
        operation_of(bad.method, bad.url),
        bad.url.replace("{id}", here),
        # One byte a character: the corpus can hold invalid UTF-8.
        body=(bad.body or "").replace("{id}", here).encode("latin-1"),
        headers=bad.headers,
    )

    assert answer.status_code == 422, answer.text
    assert set(answer.json()) == {"detail"}
    assert [shown(problem) for problem in answer.json()["detail"]] == bad.problems
    assert await callers.side_effects() == before


@pytest.mark.parametrize("op", ON_AN_INSTANCE, ids=lambda op: f"{op.declared.method} {op.declared.path}")
async def test_an_invalid_instance_id_is_the_first_problem_reported(callers: Callers, op: Operation) -> None:
    url = op.declared.path.format(instance_id="x", conversation_id="c-1")

    answer = await ask(callers, op, url)

    problem = "path.instance_id: Input should be a valid UUID, invalid character: found `x` at 0 (uuid_parsing)"
    assert answer.status_code == 422
    assert shown(answer.json()["detail"][0]) == problem
    assert [each["loc"] for each in answer.json()["detail"][1:]] in ([], [["body"]])


@pytest.mark.parametrize("op", WITH_A_BODY, ids=lambda op: f"{op.declared.method} {op.declared.path}")
async def test_a_body_over_the_size_limit_is_refused_and_nothing_changes(callers: Callers, op: Operation) -> None:
    limit = max(callers.api.parts.settings.body_max_bytes, op.declared.body_bytes)
    url = op.declared.path.format(instance_id=callers.instance.instance_id)
    before = await callers.side_effects()

    answer = await ask(callers, op, url, body=b" " * (limit + 1))

    assert (answer.status_code, answer.json()) == (413, {"detail": f"The body is larger than {limit} bytes"})
    assert await callers.side_effects() == before


async def test_the_corpus_covers_every_operation_that_takes_input() -> None:
    covered = {operation_of(bad.method, bad.url).declared for bad in CASES}
    covered |= {op.declared for op in ON_AN_INSTANCE}

    assert len(CASES) >= 60
    assert [op.declared.path for op in OPERATIONS if op.signature.inputs and op.declared not in covered] == []
