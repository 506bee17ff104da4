"""Rate limits in one process, in several, and while Redis is away."""

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
    """A long timeout, so that a busy machine does not suspend the limits whose exact figures are tested."""
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
    """How many of this many concurrent requests are admitted."""
    outcomes = await asyncio.gather(*(limiter.admit(who) for _ in range(of)), return_exceptions=True)
    assert {type(outcome) for outcome in outcomes} <= {type(None), TooManyRequests}
    return outcomes.count(None)


async def is_refused(limiter: RateLimiter, who: object = ANN) -> bool:
    return await admitted(limiter, who, of=1) == 0


@pytest.mark.usefixtures("patient")
async def test_requests_over_the_limit_get_a_429_that_says_how_long_to_wait(database_url: str, redis_url: str) -> None:
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
async def test_a_request_that_is_refused_for_the_limit_appends_nothing(
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


async def test_unauthenticated_requests_get_a_401_however_many_there_are(database_url: str, redis_url: str) -> None:
    async with running_api(database_url, redis_url, rate_limit_per_minute=2) as api:
        answers = [await api.client.get("/v1/instances") for _ in range(5)]

    assert {answer.status_code for answer in answers} == {401}


@pytest.mark.usefixtures("patient")
async def test_an_api_key_has_one_limit_for_all_users_that_it_acts_for(
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
async def test_each_agent_has_a_higher_limit_that_is_counted_separately(redis_url: str) -> None:
    agent, other = (CallingAgent(uuid4(), UUID(int=1)) for _ in range(2))
    async with limiter_on(redis_url) as (limiter, _):
        assert await admitted(limiter, agent, of=LIMIT * AGENT_FACTOR + 5) == LIMIT * AGENT_FACTOR
        assert await admitted(limiter, other, of=LIMIT + 1) == LIMIT + 1
        assert await admitted(limiter, of=LIMIT + 1) == LIMIT


@pytest.mark.usefixtures("patient")
async def test_ids_that_join_to_the_same_text_are_counted_separately(redis_url: str) -> None:
    one = Principal(tenant_id="a:b", user_id="c", role="customer")
    other = Principal(tenant_id="a", user_id="b:c", role="customer")
    async with limiter_on(redis_url) as (limiter, _):
        assert await admitted(limiter, one, of=LIMIT) == LIMIT
        assert await admitted(limiter, other, of=LIMIT) == LIMIT


@pytest.mark.usefixtures("patient")
async def test_processes_share_one_limit_within_a_second(redis_url: str) -> None:
    async with limiter_on(redis_url) as (one, redis), limiter_on(redis_url) as (other, _):
        assert await admitted(one, of=LIMIT) == LIMIT
        await until(lambda: redis.exists(KEY_OF_ANN), seconds_max=1)

        # The other process learns the count with the first request that it reports.
        await until(lambda: is_refused(other), seconds_max=1)

        assert await is_refused(one)
        # Each process may admit a full limit before it knows of the other's count.
        assert LIMIT <= int(await redis.get(KEY_OF_ANN) or 0) <= LIMIT + LIMIT


@pytest.mark.usefixtures("patient")
async def test_a_process_that_starts_later_counts_what_others_have_admitted(redis_url: str) -> None:
    async with limiter_on(redis_url) as (first, redis):
        assert await admitted(first, of=LIMIT - 1) == LIMIT - 1
        await until(lambda: redis.exists(KEY_OF_ANN))

    async with limiter_on(redis_url) as (second, _):
        # Its own count has reached the limit, so it asks, and only then refuses.
        assert await admitted(second, of=LIMIT + 1) == LIMIT
        assert await is_refused(second)


@pytest.mark.usefixtures("patient")
async def test_requests_are_admitted_again_when_the_window_ends(redis_url: str) -> None:
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
async def test_counters_of_past_windows_are_dropped(redis_url: str) -> None:
    clock = Clock()
    async with limiter_on(redis_url, clock=clock) as (limiter, redis):

        async def ask(user_id: str) -> None:
            await limiter.admit(Principal(tenant_id="acme", user_id=user_id, role="customer"))

        async def is_counted(user_id: str) -> bool:
            return bool(await redis.exists(f"{KEY_PREFIX}user/acme/{user_id}"))

        for number in range(20):
            await ask(f"customer-{number}")
        await until(lambda: is_counted("customer-19"))
        clock.now_s += WINDOW_S + 1
        # A client that keeps asking does not keep the counters of the others alive.
        await ask("customer-0")
        await ask("later")
        await until(lambda: len(limiter._counters) == 2)

        assert set(limiter._counters) == {"user/acme/customer-0", "user/acme/later"}


async def test_without_a_limit_nothing_is_counted_in_redis(database_url: str, redis_url: str) -> None:
    async with running_api(database_url, redis_url, rate_limit_per_minute=0) as api, Redis.from_url(redis_url) as redis:
        answers = [await api.client.get("/v1/instances", headers=api.token()) for _ in range(20)]

        assert {answer.status_code for answer in answers} == {200}
        assert api.parts.limiter is None
        assert await redis.keys(f"{KEY_PREFIX}*") == []


@pytest.mark.usefixtures("patient")
async def test_an_emptied_redis_resets_the_counts(redis_url: str) -> None:
    async with limiter_on(redis_url) as (limiter, redis):
        assert await admitted(limiter, of=LIMIT + 1) == LIMIT
        await redis.flushdb()
        await redis.script_flush()

        async def is_admitted() -> bool:
            return not await is_refused(limiter)

        await until(is_admitted, seconds_max=1)


async def how_long(asked: Callable[[], Awaitable[object]]) -> float:
    began_s = time.perf_counter()
    await asked()
    return time.perf_counter() - began_s


async def test_without_redis_no_request_is_refused_and_limits_are_logged_as_suspended_once(database_url: str) -> None:
    async with running_api(database_url, "redis://127.0.0.1:1/0", rate_limit_per_minute=LIMIT) as api:
        ann = api.token()
        with structlog.testing.capture_logs() as lines:
            answers = [await api.client.get("/v1/instances", headers=ann) for _ in range(LIMIT * 4)]

    assert {answer.status_code for answer in answers} == {200}
    assert [line["event"] for line in lines] == ["rate_limits_suspended"]


async def test_a_redis_that_accepts_connections_but_never_answers_delays_requests_only_once() -> None:
    with socket.create_server(("127.0.0.1", 0)) as mute:
        async with limiter_on(f"redis://127.0.0.1:{mute.getsockname()[1]}/0") as (limiter, _):

            async def asked() -> None:
                for _ in range(500):
                    await limiter.admit(ANN)

            # One wait until Redis counts as down, and none from then on.
            assert 0.2 < await how_long(asked) < 1
            assert await how_long(asked) < 0.2


@pytest.mark.usefixtures("patient")
async def test_limits_apply_again_once_redis_is_back(own_services: OwnServices) -> None:
    supervisor = own_services.supervisor
    valkey = supervisor._runners["valkey"].part
    async with limiter_on(own_services.redis_url) as (limiter, redis):
        assert await is_refused(limiter) is False
        assert await admitted(limiter, of=LIMIT) == LIMIT - 1

        with structlog.testing.capture_logs() as lines:
            await supervisor.stop(["valkey"], grace_s=5)

            async def is_admitted() -> bool:
                return not await is_refused(limiter)

            # A client that was refused before is admitted as well.
            await until(is_admitted, seconds_max=2)
            assert await admitted(limiter, of=LIMIT * 4) == LIMIT * 4
            await supervisor.start(valkey)
            await until(lambda: is_refused(limiter), seconds_max=10)

        assert await redis.ping()
    assert [line["event"] for line in lines] == ["rate_limits_suspended", "rate_limits_resumed"]
