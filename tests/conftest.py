"""Fixtures shared by all tests: real services, one database a test."""

import itertools
import os
import signal
import sys
import threading
from collections.abc import AsyncGenerator, Generator
from contextlib import suppress
from importlib import import_module
from pathlib import Path

import psycopg
import pytest
import redis
import structlog
from hypothesis import settings

from hydracore.embedded import ports
from hydracore.gc_tuning import freeze_and_collect_less_often
from tests.cloudsim_fixtures import cloudsim_fixture, driver_fixture, module_cloudsim_fixture
from tests.orphan_servers import provider_fixture
from tests.sealed_log import sealed_logs_fixture
from tests.services import VALKEY_DATABASES, Guest, OwnServices, Services, empty_database
from tests.stack_fixtures import session_stack_fixture, stack_fixture

#: Fixtures are found by being here.
__all__ = [
    "cloudsim_fixture",
    "driver_fixture",
    "module_cloudsim_fixture",
    "provider_fixture",
    "sealed_logs_fixture",
    "session_stack_fixture",
    "stack_fixture",
]

_serial = itertools.count(1)

# A suite that starts hundreds of processes must not compile all modules in each of them, wherever this was switched off.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False

# A shell has what it starts in the background ignore Ctrl-C, and so would every program that is to be interrupted here.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# The default draws each traceback with the variables of its frames, which takes a tenth of a second.
structlog.configure(
    [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.dev.ConsoleRenderer(exception_formatter=structlog.dev.plain_traceback),
    ]
)

# The same examples each time, and nothing that depends on the clock: eight workers share the processors.
settings.load_profile("ci")

# Collecting makes millions of objects that stay.
freeze_and_collect_less_often()

if "PYTEST_XDIST_WORKER" in os.environ:
    # Each worker draws ports from a range of its own: between the draw and the server that listens there, another one could draw the
    # same port, and the second server would not start. All of these are below the product's range, from which programs that tests
    # start, like `hydracore up`, draw theirs.
    _number = int(os.environ["PYTEST_XDIST_WORKER"].removeprefix("gw"))
    _size = (ports.PORT_LAST - ports.PORT_FIRST + 1) // int(os.environ["PYTEST_XDIST_WORKER_COUNT"])
    _first = 10_000 + _number * _size
    setattr(ports, "PORT_FIRST", _first)  # noqa: B010 - final for the product
    setattr(ports, "PORT_LAST", _first + _size - 1)  # noqa: B010


def pytest_collection(session: pytest.Session) -> None:
    """Begin with a share of the modules: in a fresh checkout each is rewritten by one of xdist's workers, and not by all at once."""
    worker = getattr(session.config, "workerinput", None)
    if worker is None or session.config.args_source is not pytest.Config.ArgsSource.TESTPATHS:
        return
    paths = sorted(Path(__file__).parent.rglob("test_*.py"))
    for path in paths[int(worker["workerid"].removeprefix("gw")) :: worker["workercount"]]:
        name = ".".join(path.relative_to(session.config.rootpath).with_suffix("").parts)
        with suppress(Exception):  # Collected in a moment, it tells why.
            import_module(name)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """The long tests first: whoever began one last would keep all others waiting.

    Each of xdist's workers is given a stretch of the list, and later takes from what others have not begun.
    """
    workers = getattr(config, "workerinput", {}).get("workercount", 1)
    long = [item for item in items if item.get_closest_marker("long")]
    others = iter([item for item in items if not item.get_closest_marker("long")])
    bounds = [len(items) * number // workers for number in range(workers + 1)]
    dealt = [long[number::workers] for number in range(workers)]
    stretches = zip(dealt, itertools.pairwise(bounds), strict=True)
    items[:] = [
        item
        for first, (begin, end) in stretches
        for item in (*first, *itertools.islice(others, max(0, end - begin - len(first))))
    ] + [*others]


def pytest_collection_finish() -> None:
    freeze_and_collect_less_often()


#: Whether pytest itself has failed, here or in one of xdist's workers.
_broken = threading.Event()


def pytest_internalerror() -> None:
    _broken.set()


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    """A worker in which pytest fails takes its test with it, and xdist ends as if all others were all."""
    if _broken.is_set() and session.exitstatus == pytest.ExitCode.OK:
        session.exitstatus = pytest.ExitCode.INTERNAL_ERROR


@pytest.fixture(scope="session")
def services(tmp_path_factory: pytest.TempPathFactory) -> Generator[Services]:
    """The PostgreSQL and the Valkey of this run."""
    base = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        base = base.parent  # Each worker has a directory of its own in the run's.
    guest = Guest(base)
    yield guest.services
    guest.leave()


@pytest.fixture
def database_url(services: Services) -> Generator[str]:
    """A migrated database of the test's own, dropped afterwards."""
    name = f"test_{os.environ.get('PYTEST_XDIST_WORKER', 'main')}_{next(_serial)}"
    yield services.create_database(name)
    services.drop_database(name)


@pytest.fixture
def empty_url(services: Services) -> Generator[str]:
    """A database with nothing in it, dropped afterwards."""
    with empty_database(services) as url:
        yield url


@pytest.fixture
def redis_url(services: Services) -> str:
    """An empty logical database of Valkey. Channels of publish/subscribe are shared by all of them."""
    with redis.Redis.from_url(services.redis_url.format(0)) as counter:
        number = 1 + int(counter.incr("tests")) % (VALKEY_DATABASES - 1)
    url = services.redis_url.format(number)
    with redis.Redis.from_url(url) as client:
        client.flushdb()
    return url


@pytest.fixture
async def owner_conn(database_url: str) -> AsyncGenerator[psycopg.AsyncConnection]:
    """A connection of the owner's (who may do everything) in autocommit mode."""
    async with await psycopg.AsyncConnection.connect(database_url, autocommit=True) as connection:
        yield connection


@pytest.fixture
async def own_services(services: Services, tmp_path: Path) -> AsyncGenerator[OwnServices]:
    """A PostgreSQL (migrated) and a Valkey for this test alone, to be killed and restarted at will."""
    async with OwnServices.running(tmp_path, services) as own:
        yield own
