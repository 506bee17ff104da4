"""A port that was free when it was chosen or asked for, and is taken before the part that needs it listens there."""

import json
import socket
from collections.abc import Generator, Mapping
from contextlib import ExitStack, closing
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import psycopg
import pytest

from hydracore.db import LOCK_KEY
from hydracore.embedded.errors import AgentsPortTaken, PortTaken
from hydracore.embedded.files import write_json
from hydracore.embedded.home import Home
from hydracore.embedded.ports import LOOPBACK, PORT_FIRST, PORT_LAST, Ports, free_port
from hydracore.embedded.stack import Stack
from tests.services import open_folder


@pytest.fixture(name="home")
def home_fixture() -> Generator[Home]:
    with open_folder() as folder:
        yield Home(folder / "home")


@pytest.fixture(name="environ")
def environ_fixture(database_url: str, redis_url: str) -> Mapping[str, str]:
    """The stores of the tests: starting a home's own would take longer."""
    return {"HYDRACORE_DATABASE_URL": database_url, "HYDRACORE_REDIS_URL": redis_url}


class Thief:
    """Takes a port once the first part is started. The migration, which comes before the API's start, waits for that."""

    def __init__(self, database_url: str, ports_file: Path, name: str) -> None:
        self.port: int | None = None
        self._ports_file, self._name = ports_file, name
        self._until_ended = ExitStack()
        self._migration_lock = self._until_ended.enter_context(psycopg.connect(database_url, autocommit=True))
        self._migration_lock.execute("SELECT pg_advisory_lock(%s)", (LOCK_KEY,))

    def __call__(self) -> None:
        if self.port is None:
            self.port = json.loads(self._ports_file.read_bytes())[self._name]
            self._until_ended.enter_context(socket.create_server((LOOPBACK, self.port)))
            self._migration_lock.close()

    def close(self) -> None:
        self._until_ended.close()


@pytest.mark.parametrize("name", ["agents", "api"])
async def test_a_new_home_whose_port_is_taken_during_its_first_start_chooses_another(
    home: Home, environ: Mapping[str, str], database_url: str, name: str
) -> None:
    told: list[str] = []
    with closing(Thief(database_url, home.ports_file, name)) as thief:
        async with Stack.running(
            home, port=None, workers=1, environ=environ, on_change=thief, on_failure=told.append
        ) as stack:
            ports = json.loads(home.ports_file.read_bytes())

            assert thief.port not in (None, ports[name])
            assert stack.settings.public_url == f"http://{LOOPBACK}:{ports['agents']}"
            assert stack.url == f"http://{LOOPBACK}:{ports['api']}"

    assert told[-2:] == [
        f"api ended during startup; see {home.logs / 'api.log'}",
        f"another program has taken port {thief.port} meanwhile: starting again",
    ]


def test_a_port_that_agents_may_already_know_is_never_replaced(home: Home) -> None:
    write_json(home.ports_file, {"agents": free_port(), "postgres": free_port()})
    ports = Ports(home.ports_file)
    known = [ports.claim_for_agents(), ports.claim("postgres")]
    drawn = ports.claim("valkey")

    with ExitStack() as until_ended:
        for port in (*known, drawn):
            until_ended.enter_context(socket.create_server((LOOPBACK, port)))
        taken = ports.taken_since()

        assert sorted(taken) == sorted([*known, drawn])
        assert json.loads(home.ports_file.read_bytes()) == dict(zip(("agents", "postgres"), known, strict=True))
        with pytest.raises(AgentsPortTaken):
            Ports(home.ports_file).claim_for_agents()


@pytest.mark.parametrize("content", ["{", "[]", '{"agents": 65536}', '{"agents": 0}', '{"agents": "22000"}'])
def test_invalid_recorded_ports_are_replaced(home: Home, content: str) -> None:
    home.ports_file.write_text(content)

    drawn = Ports(home.ports_file).claim_for_agents()

    assert PORT_FIRST <= drawn <= PORT_LAST
    assert json.loads(home.ports_file.read_bytes()) == {"agents": drawn}


async def test_an_api_of_another_home_on_the_same_port_is_not_mistaken_for_our_own(
    home: Home, environ: Mapping[str, str]
) -> None:
    port = free_port()
    theirs: list[ThreadingHTTPServer] = []

    def answer_there() -> None:
        if not theirs:
            theirs.append(ThreadingHTTPServer((LOOPBACK, port), Healthy))
            Thread(target=theirs[0].serve_forever).start()

    try:
        with pytest.raises(PortTaken, match=f"port {port} on {LOOPBACK} is already in use: stop the program"):
            async with Stack.running(home, port=port, workers=1, environ=environ, on_change=answer_there):
                pass
    finally:
        for server in theirs:
            server.shutdown()
            server.server_close()


class Healthy(BaseHTTPRequestHandler):
    """Answers like an API that is ready."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - its name in the base class
        pass
