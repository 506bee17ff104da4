"""Create orders for tests of the Hetzner driver, and calls that many of these tests make."""

import traceback
from typing import Any
from uuid import uuid4

import msgspec
import pytest

from tests.cloudsim_fixtures import TOKEN
from tests.waiting import until
from workers.providers.base import CreateServer, Provider, ProviderError, Server

LABELS = {"installation": "hydracore", "instance": str(uuid4()), "attempt": "1"}


def server_order(name: str = "hc-1", **changes: Any) -> CreateServer:
    usual = CreateServer(
        name=name,
        server_type="sim1",
        location="local1",
        image="debian-13",
        user_data="#cloud-config\n{}",
        labels=LABELS,
    )
    return msgspec.structs.replace(usual, **changes)


async def wait_until_running(driver: Provider, server_id: str) -> Server:
    async def is_running() -> bool:
        server = await driver.get_server(server_id)
        return server is not None and server.status == "running"

    await until(is_running)
    server = await driver.get_server(server_id)
    assert server is not None
    return server


async def is_gone(driver: Provider, server_id: str) -> bool:
    return await driver.get_server(server_id) is None


def full_error_text(error: BaseException) -> str:
    """All that could end in a log: the error, its fields, and whatever it is chained to."""
    return "".join(traceback.format_exception(error)) + repr(error) + repr(vars(error)) + repr(error.__context__)


def assert_no_secret(error: ProviderError, caplog: pytest.LogCaptureFixture) -> None:
    said = full_error_text(error) + caplog.text
    assert TOKEN[:8] not in said
    assert "enrol_token" not in said
    assert "root-" not in said
