"""How often anybody may ask: in one process, in several, and while Redis is away."""

import asyncio
import socket
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from uuid import UUID, uuid4

import psycopg
import pytest
import structlog
from redis.asyncio import Redis

from hydracore.api import rate_limiter
from hydracore.api.agent_gate import CallingAgent
from hydracore.api.errors import TooManyRequests
from hydracore.api.rate_limiter import AGENT_FACTOR, KEY_PREFIX, WINDOW_S, RateLimiter
from hydracore.auth import Principal, create_api_key
from tests.api_server import running_api
from tests.services import OwnServices
from tests.waiting import until

ANN = Principal(tenant_id="acme", user_id="ann", role="customer")
KEY_OF_ANN = f"{KEY_PREFIX}user/acme/ann"
LIMIT = 5


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Redis is there, only the machine may be busy: limits are not suspended for that where their figures are the point."""
    monkeypatch.setattr(rate_limiter, "TIMEOUT_S", 10.0)


class Clock:
    def __init__(self) -> None:
        self.now_s = 1_000.0

    def __call__(self) -> float:
        return self.now_s


@asynccontextmanager
async def limiter_on(
    redis_url: str, *, per_minute: int = LIMIT, clock: Callable[[], float] = time.monotonic
) -> AsyncGenerator[tuple[RateLimiter, Redis]]:
    async with Redis.from_url(redis_url) as redis:
        limiter = RateLimiter(redis, per_minute=per_minute, clock=clock)
        yield limiter, redis
        await limiter.aclose()


async def admitted(limiter: RateLimiter, who: object = ANN, *, of: int) -> int:
    """How many of so many requests at once are let in."""
    outcomes = await asyncio.gather(*(limiter.admit(who) for _ in range(of)), return_exceptions=True)
    assert {type(outcome) for outcome in outcomes} <= {type(None), TooManyRequests}
    return outcomes.count(None)


async def is_refused(limiter: RateLimiter, who: object = ANN) -> bool:
    return await admitted(limiter, who, of=1) == 0


@pytest.mark.usefixtures("patient")
async def test_one_gets_what_is_allowed_and_then_a_429_that_says_how_long_to_wait(
    database_url: str, redis_url: str
) -> None:
    async with running_api(database_url, redis_url, rate_limit_per_minute=LIMIT) as api:
        ann, bob = api.token(), api.token(user="bob")
        answers = [await api.client.get("/v1/instances", headers=ann) for _ in range(LIMIT + 2)]
        others = [
            await api.client.get("/v1/instances", headers=bob),
            await api.client.get("/v1/instances", headers=api.token(tenant="other")),
            await api.client.get("/health/live", headers=ann),
        ]

    assert [answer.status_code for answer in answers] == [200] * LIMIT + [429] * 2
    refused = answers[-1]
    wait_s = int(refused.headers["retry-after"])
    assert 1 <= wait_s <= WINDOW_S
    assert refused.json() == {"detail": f"Too many requests; try again in {wait_s} s"}
    assert "x-request-id" in refused.headers
    assert [answer.status_code for answer in others] == [200] * 3


@pytest.mark.usefixtures("patient")
async def test_a_refused_order_is_not_in_the_log(
    database_url: str, redis_url: str, owner_conn: psycopg.AsyncConnection
) -> None:
    async with running_api(database_url, redis_url, rate_limit_per_minute=2) as api:
        body = {"region_id": "local", "tier_id": "starter"}
        answers = await asyncio.gather(
            *(api.client.post("/v1/instances", json=body, headers=api.token()) for _ in range(6))
        )

    statuses = sorted(answer.status_code for answer in answers)
    (written,) = await (await owner_conn.execute("SELECT count(DISTINCT stream_id) FROM event")).fetchone() or (0,)
    assert statuses == [202, 202, 429, 429, 429, 429]
    assert written == 2


async def test_strangers_are_told_that_they_are_strangers_however_often_they_ask(
    database_url: str, redis_url: str
) -> None:
    async with running_api(database_url, redis_url, rate_limit_per_minute=2) as api:
        answers = [await api.client.get("/v1/instances") for _ in range(5)]

    assert {answer.status_code for answer in answers} == {401}


@pytest.mark.usefixtures("patient")
async def test_an_api_key_is_counted_as_one_whomever_it_acts_for(
    database_url: str, redis_url: str, owner_conn: psycopg.AsyncConnection
) -> None:
    key = await create_api_key(owner_conn, tenant_id="acme", name="backend")
    async with running_api(database_url, redis_url, rate_limit_per_minute=3) as api:
        answers = [
            await api.client.get("/v1/instances", headers={"X-Api-Key": key, "X-User-Id": f"customer-{number}"})
            for number in range(4)
        ]
        by_token = await api.client.get("/v1/instances", headers=api.token(user="customer-0"))

    assert [answer.status_code for answer in answers] == [200, 200, 200, 429]
    assert by_token.status_code == 200


@pytest.mark.usefixtures("patient")
async def test_an_agent_may_ask_more_often_and_is_counted_apart_from_everybody(redis_url: str) -> None:
    agent, other = (CallingAgent(uuid4(), UUID(int=1)) for _ in range(2))
    async with limiter_on(redis_url) as (limiter, _):
        assert await admitted(limiter, agent, of=LIMIT * AGENT_FACTOR + 5) == LIMIT * AGENT_FACTOR
        assert await admitted(limiter, other, of=LIMIT + 1) == LIMIT + 1
        assert await admitted(limiter, of=LIMIT + 1) == LIMIT


@pytest.mark.usefixtures("patient")
async def test_ids_that_join_to_the_same_text_are_told_apart(redis_url: str) -> None:
    one = Principal(tenant_id="a:b", user_id="c", role="customer")
    other = Principal(tenant_id="a", user_id="b:c", role="customer")
    async with limiter_on(redis_url) as (limiter, _):
        assert await admitted(limiter, one, of=LIMIT) == LIMIT
        assert await admitted(limiter, other, of=LIMIT) == LIMIT


@pytest.mark.usefixtures("patient")
async def test_processes_agree_within_a_second(redis_url: str) -> None:
    async with limiter_on(redis_url) as (one, redis), limiter_on(redis_url) as (other, _):
        assert await admitted(one, of=LIMIT) == LIMIT
        await until(lambda: redis.exists(KEY_OF_ANN), seconds_max=1)

        # The other process finds out with the first request that it tells of.
        await until(lambda: is_refused(other), seconds_max=1)

        assert await is_refused(one)
        # What either let in before it knew.
        assert LIMIT <= int(await redis.get(KEY_OF_ANN) or 0) <= LIMIT + LIMIT


@pytest.mark.usefixtures("patient")
async def test_a_process_that_starts_later_goes_by_what_the_others_have_counted(redis_url: str) -> None:
    async with limiter_on(redis_url) as (first, redis):
        assert await admitted(first, of=LIMIT - 1) == LIMIT - 1
        await until(lambda: redis.exists(KEY_OF_ANN))

    async with limiter_on(redis_url) as (second, _):
        # Its own count has reached the limit, so it asks, and only then refuses.
        assert await admitted(second, of=LIMIT + 1) == LIMIT
        assert await is_refused(second)


@pytest.mark.usefixtures("patient")
async def test_the_next_window_begins_as_told(redis_url: str) -> None:
    clock = Clock()
    async with limiter_on(redis_url, clock=clock) as (limiter, redis):
        assert await admitted(limiter, of=LIMIT + 1) == LIMIT
        left_ms = await redis.pttl(KEY_OF_ANN)

        clock.now_s += WINDOW_S - 1
        still = await is_refused(limiter)
        clock.now_s += 1
        await redis.delete(KEY_OF_ANN)  # as Redis does by its own clock
        again = await admitted(limiter, of=LIMIT + 1)

        assert WINDOW_S * 1000 - 5_000 < left_ms <= WINDOW_S * 1000
        assert (still, again) == (True, LIMIT)


@pytest.mark.usefixtures("patient")
async def test_counters_of_windows_that_are_over_are_forgotten(redis_url: str) -> None:
    clock = Clock()
    async with limiter_on(redis_url, clock=clock) as (limiter, redis):

        async def ask(user_id: str) -> None:
            await limiter.admit(Principal(tenant_id="acme", user_id=user_id, role="customer"))

        async def is_told(user_id: str) -> bool:
            return bool(await redis.exists(f"{KEY_PREFIX}user/acme/{user_id}"))

        for number in range(20):
            await ask(f"customer-{number}")
        await until(lambda: is_told("customer-19"))
        clock.now_s += WINDOW_S + 1
        # Somebody who never stops asking is no reason to remember the others.
        await ask("customer-0")
        await ask("later")
        await until(lambda: len(limiter._counters) == 2)

        assert set(limiter._counters) == {"user/acme/customer-0", "user/acme/later"}


async def test_no_limit_leaves_no_trace(database_url: str, redis_url: str) -> None:
    async with running_api(database_url, redis_url, rate_limit_per_minute=0) as api, Redis.from_url(redis_url) as redis:
        answers = [await api.client.get("/v1/instances", headers=api.token()) for _ in range(20)]

        assert {answer.status_code for answer in answers} == {200}
        assert api.parts.limiter is None
        assert await redis.keys(f"{KEY_PREFIX}*") == []


@pytest.mark.usefixtures("patient")
async def test_an_emptied_redis_is_taken_at_its_word(redis_url: str) -> None:
    async with limiter_on(redis_url) as (limiter, redis):
        assert await admitted(limiter, of=LIMIT + 1) == LIMIT
        await redis.flushdb()
        await redis.script_flush()

        async def is_let_in() -> bool:
            return not await is_refused(limiter)

        await until(is_let_in, seconds_max=1)


async def how_long(asked: Callable[[], Awaitable[object]]) -> float:
    began_s = time.perf_counter()
    await asked()
    return time.perf_counter() - began_s


async def test_without_redis_nobody_is_refused_or_kept_waiting(database_url: str) -> None:
    async with running_api(database_url, "redis://127.0.0.1:1/0", rate_limit_per_minute=LIMIT) as api:
        ann = api.token()
        with structlog.testing.capture_logs() as lines:
            answers = [await api.client.get("/v1/instances", headers=ann) for _ in range(LIMIT * 4)]

    assert {answer.status_code for answer in answers} == {200}
    assert [line["event"] for line in lines] == ["rate_limits_suspended"]


async def test_a_redis_that_takes_connections_and_never_answers_costs_next_to_nothing() -> None:
    with socket.create_server(("127.0.0.1", 0)) as mute:
        async with limiter_on(f"redis://127.0.0.1:{mute.getsockname()[1]}/0") as (limiter, _):

            async def asked() -> None:
                for _ in range(500):
                    await limiter.admit(ANN)

            # One wait until it counts as down, and none from then on.
            assert 0.2 < await how_long(asked) < 1
            assert await how_long(asked) < 0.2


@pytest.mark.usefixtures("patient")
async def test_limits_hold_again_once_redis_is_back(own_services: OwnServices) -> None:
    supervisor = own_services.supervisor
    valkey = supervisor._runners["valkey"].part
    async with limiter_on(own_services.redis_url) as (limiter, redis):
        assert await is_refused(limiter) is False
        assert await admitted(limiter, of=LIMIT) == LIMIT - 1

        with structlog.testing.capture_logs() as lines:
            await supervisor.stop(["valkey"], grace_s=5)

            async def is_let_in() -> bool:
                return not await is_refused(limiter)

            # Also whoever was refused already.
            await until(is_let_in, seconds_max=2)
            assert await admitted(limiter, of=LIMIT * 4) == LIMIT * 4
            await supervisor.start(valkey)
            await until(lambda: is_refused(limiter), seconds_max=10)

        assert await redis.ping()
    assert [line["event"] for line in lines] == ["rate_limits_suspended", "rate_limits_resumed"]
