"""What actors log about work that could not be done."""

from __future__ import annotations

import psycopg
import structlog

from hydracore.embedded.ports import free_port
from workers.actors import _run_and_log


async def test_an_unavailable_database_is_logged_in_one_line_with_its_error_and_no_password() -> None:
    port = free_port()

    async def work() -> None:
        await psycopg.AsyncConnection.connect(f"postgresql://ada:secret@127.0.0.1:{port}/log")

    with structlog.testing.capture_logs() as told:
        await _run_and_log(work(), instance_id="6")

    (line,) = told
    assert (line["event"], line["instance_id"]) == ("database_unavailable", "6")
    assert f"port {port} failed: Connection refused" in line["error"]
    assert ("\n" in line["error"], "secret" in line["error"]) == (False, False)
