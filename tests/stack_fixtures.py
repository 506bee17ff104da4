"""A stack that all tests of one xdist worker share. It is made whole before each test.

Its agents run inside cloudsim, because its tests are about the control plane.
"""

import os
from collections.abc import AsyncGenerator, Generator

import pytest
import redis

from hydracore.signals import run_to_completion
from tests.consistency import check_consistency
from tests.secrecy import assert_no_secret_leaked
from tests.services import VALKEY_DATABASES, Services
from tests.stack import Stack


@pytest.fixture(scope="session", name="session_stack")
def session_stack_fixture(services: Services, tmp_path_factory: pytest.TempPathFactory) -> Generator[Stack]:
    name = f"stack_{os.environ.get('PYTEST_XDIST_WORKER', 'main')}"
    with redis.Redis.from_url(services.redis_url.format(0)) as counter:
        number = 1 + int(counter.incr("tests")) % (VALKEY_DATABASES - 1)
    stack = Stack(
        tmp_path_factory.mktemp("stack"),
        database_url=services.create_database(name),
        redis_url=services.redis_url.format(number),
    )
    # A new relay has the servers swept at once, which might be in the middle of a test that counts sweeps.
    stack.rows("INSERT INTO duty (name, ran_at) VALUES ('sweep', now()) RETURNING name")
    try:
        yield stack
        # Whatever the tests did to it, and whether they looked at this or not; with nobody who still writes.
        stack.kill()
        run_to_completion(check_consistency(stack.database_url))
        assert_no_secret_leaked(stack)
    finally:
        stack.thaw()
        stack.close()
    services.drop_database(name)


@pytest.fixture(name="stack")
async def stack_fixture(session_stack: Stack) -> AsyncGenerator[Stack]:
    """A whole stack. A test may kill any process of it, and starts again what its later tests would have to wait for."""
    session_stack.thaw()
    await session_stack.restore()
    yield session_stack
    session_stack.freeze()
