"""The supervisor with runtimes that fail, stop and change, and the waits between its attempts."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest

from hydracore.agent.backoff import Backoff
from hydracore.agent.chats import NotServing, OpenChat, Question
from hydracore.agent.errors import RuntimeFailed
from hydracore.agent.messages import Versions
from hydracore.agent.runtime import RuntimeConfig, RuntimeKind
from hydracore.agent.supervisor import Supervisor


def require_right(config: RuntimeConfig) -> None:
    if config.settings.get("wrong"):
        raise RuntimeFailed("config_invalid", "It is wrong")


class ScriptedRuntime:
    """A runtime that fails to start as often as a test wants, and ends when a test sets `ended`."""

    def __init__(self, config: RuntimeConfig, *, start_failures: list[RuntimeFailed]) -> None:
        self.config = config
        self.ended = asyncio.Event()
        self.is_stopped = False
        self.is_drained = False
        self.is_interrupted = False
        self.is_idle = asyncio.Event()
        self._start_failures = start_failures

    async def start(self) -> None:
        if self._start_failures:
            raise self._start_failures.pop(0)

    async def wait_until_stopped(self) -> None:
        await self.ended.wait()

    async def stop(self) -> None:
        self.is_stopped = True

    def apply(self, config: RuntimeConfig) -> bool:
        require_right(config)
        return bool(config.settings.get("gentle"))

    def drain(self) -> None:
        self.is_drained = True

    async def wait_until_idle(self) -> None:
        await self.is_idle.wait()

    async def interrupt_chats(self) -> None:
        self.is_interrupted = True

    def open_chat(self, question: Question) -> OpenChat:
        return OpenChat()

    error = None
    active_connections = 2
    skills_loaded = ("notes",)
    workflows_loaded = ("weekly-review",)
    ignored = ()
    versions = Versions(agent="9", node="22")

    @property
    def connections(self) -> dict[str, str]:
        return {"telegram": "off"}


class Stage:
    """A supervisor and all runtimes it ever made."""

    def __init__(self, *start_failures: RuntimeFailed, kind: str = "scripted") -> None:
        self.runs: list[ScriptedRuntime] = []
        self.reports: list[tuple[str, str]] = []
        failures = list(start_failures)

        def create(config: RuntimeConfig) -> ScriptedRuntime:
            self.runs.append(ScriptedRuntime(config, start_failures=failures))
            return self.runs[-1]

        self.supervisor = Supervisor(
            runtimes={"scripted": RuntimeKind(create=create, check=require_right)},
            report=lambda level, message: self.reports.append((level, message)),
            monotonic=time.monotonic,
        )
        self.supervisor.configure(config(1, kind))

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Supervisor]:
        task = asyncio.create_task(self.supervisor.run())
        try:
            async with asyncio.timeout(10):
                yield self.supervisor
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)


async def until(met: Callable[[], bool]) -> None:
    while not met():  # noqa: ASYNC110 - the supervisor's figures come with no event to wait for
        await asyncio.sleep(0)


def config(version: int, kind: str = "scripted", **settings: bool) -> RuntimeConfig:
    return RuntimeConfig(type=kind, version=version, settings=settings)


QUESTION = Question(message="Hello", conversation_id=None, end_user=None, channel="api", key=None)


async def test_the_figures_of_the_runtime_are_passed_on() -> None:
    stage = Stage()
    assert (stage.supervisor.skills_loaded, stage.supervisor.config_version) == ((), None)

    async with stage.running() as supervisor:
        await supervisor.wait_until_serving()
        assert (supervisor.skills_loaded, supervisor.active_connections) == (("notes",), 2)
        assert (supervisor.versions.node, supervisor.config_version, supervisor.is_serving) == ("22", 1, True)

    assert stage.runs[0].is_stopped
    assert not supervisor.is_serving


async def test_a_runtime_that_does_not_start_is_retried_and_reported_once() -> None:
    stage = Stage(
        RuntimeFailed("no_model", "The model does not answer"), RuntimeFailed("no_model", "The model does not answer")
    )

    async with stage.running() as supervisor:
        await supervisor.wait_until_serving()

    assert len(stage.runs) == 3
    assert all(run.is_stopped for run in stage.runs)
    assert stage.reports == [("error", "no_model: The model does not answer"), ("info", "The runtime is running again")]


async def test_a_runtime_that_stops_by_itself_is_restarted() -> None:
    stage = Stage()

    async with stage.running() as supervisor:
        await supervisor.wait_until_serving()
        stage.runs[0].ended.set()
        await until(lambda: not supervisor.is_serving)
        assert supervisor.error is not None
        assert supervisor.error.code == "runtime_stopped"
        assert supervisor.config_version is None
        await supervisor.wait_until_serving()
        assert supervisor.error is None

    assert len(stage.runs) == 2


async def test_a_new_configuration_restarts_the_runtime_and_an_unchanged_one_does_not() -> None:
    stage = Stage()

    async with stage.running() as supervisor:
        await supervisor.wait_until_serving()
        supervisor.configure(config(1))
        for _ in range(20):  # More turns of the loop than a restart takes.
            await asyncio.sleep(0)
        assert not stage.runs[0].is_stopped
        supervisor.configure(config(2))
        await until(lambda: supervisor.config_version == 2)

    assert [run.config.version for run in stage.runs] == [1, 2]
    assert stage.runs[0].is_stopped
    assert stage.reports == []


async def test_a_runtime_that_can_apply_a_new_configuration_is_not_restarted() -> None:
    stage = Stage()

    async with stage.running() as supervisor:
        await supervisor.wait_until_serving()
        supervisor.configure(config(2, gentle=True))
        assert supervisor.config_version == 2
        with pytest.raises(RuntimeFailed):
            supervisor.configure(config(3, wrong=True))
        assert supervisor.config_version == supervisor.wanted_config.version == 2

    assert len(stage.runs) == 1


@pytest.mark.parametrize("wrong", [config(2, wrong=True), config(2, "unheard_of")])
async def test_an_unusable_configuration_is_refused_also_while_no_runtime_runs(wrong: RuntimeConfig) -> None:
    stage = Stage()

    with pytest.raises(RuntimeFailed):
        stage.supervisor.configure(wrong)
    stage.supervisor.configure(config(3))

    async with stage.running() as supervisor:
        await supervisor.wait_until_serving()
        with pytest.raises(RuntimeFailed):
            supervisor.configure(wrong)
        assert supervisor.config_version == supervisor.wanted_config.version == 3
    assert len(stage.runs) == 1


async def test_a_restart_waits_for_open_chats() -> None:
    stage = Stage()

    async with stage.running() as supervisor:
        await supervisor.wait_until_serving()
        restarting = asyncio.create_task(supervisor.restart(drain_s=10))
        await until(lambda: stage.runs[0].is_drained)
        assert not stage.runs[0].is_stopped
        stage.runs[0].is_idle.set()
        assert await restarting
        assert supervisor.is_serving

    assert [run.is_drained for run in stage.runs] == [True, False]
    assert [run.config.version for run in stage.runs] == [1, 1]


async def test_a_restart_waits_for_open_chats_up_to_a_limit_and_says_so() -> None:
    stage = Stage()

    async with stage.running() as supervisor:
        await supervisor.wait_until_serving()
        assert not await supervisor.restart(drain_s=0.01)
        assert supervisor.is_serving

    assert len(stage.runs) == 2


async def test_chats_are_refused_while_no_runtime_runs() -> None:
    stage = Stage()
    with pytest.raises(NotServing):
        stage.supervisor.open_chat(QUESTION)
    assert stage.supervisor.connections == {}

    async with stage.running() as supervisor:
        await supervisor.wait_until_serving()
        assert isinstance(supervisor.open_chat(QUESTION), OpenChat)
        assert supervisor.connections == {"telegram": "off"}


async def test_an_unknown_runtime_in_the_configuration_is_an_error_until_it_is_changed() -> None:
    stage = Stage(kind="unheard_of")

    async with stage.running() as supervisor:
        await until(lambda: supervisor.error is not None)
        assert supervisor.error is not None
        assert supervisor.error.code == "runtime_unknown"
        supervisor.configure(config(2))
        await supervisor.wait_until_serving()

    assert stage.runs[0].config.version == 2


async def test_draining_continues_after_a_restart_of_the_runtime() -> None:
    stage = Stage()

    async with stage.running() as supervisor:
        await supervisor.wait_until_serving()
        assert supervisor.drain() == 2
        supervisor.configure(config(2))
        await until(lambda: supervisor.config_version == 2)

    assert [run.is_drained for run in stage.runs] == [True, True]


async def test_after_chats_were_interrupted_the_runtime_drains_also_when_restarted() -> None:
    stage = Stage()
    await stage.supervisor.interrupt_chats()

    async with stage.running() as supervisor:
        await supervisor.wait_until_serving()
        await supervisor.interrupt_chats()
        supervisor.configure(config(2))
        await until(lambda: supervisor.config_version == 2)

    assert [(run.is_interrupted, run.is_drained) for run in stage.runs] == [(True, True), (False, True)]


# --- waits -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("rand", "share"), [(lambda: 0.0, 1.0), (lambda: 0.999999, 0.5)])
def test_waits_double_up_to_the_cap_and_are_reset_after_a_success(rand: Callable[[], float], share: float) -> None:
    backoff = Backoff(base_s=1, cap_s=5, rand=rand)

    waits = [backoff.next_wait_s() for _ in range(5)]
    backoff.reset()

    assert waits == pytest.approx([1 * share, 2 * share, 4 * share, 5 * share, 5 * share], rel=1e-5)
    assert backoff.next_wait_s() == pytest.approx(share, rel=1e-5)
