"""No event is lost, doubled or reordered by a reader of the log, whatever writers, sessions and clusters do.

The same trouble is made for every log in `tests/chaos/logs_compared.py`. Ours must come through all of it; of the others it is
printed what they lose, and what makes them stand still. `GAP_PROOF_SECONDS` makes the random part longer, for all of them.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import subprocess
import sys
from collections import Counter
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path
from typing import Any, LiteralString

import psycopg
import pytest
from psycopg import sql

from events.cancellation import preserve_cancellation
from hydracore.embedded.account import current_account
from hydracore.embedded.binaries import postgres_programs
from tests.chaos.logs_compared import BROKEN, LOGS, STREAMS, Log, Mark, OurLog
from tests.chaos.writer import stored_marks, write
from tests.forked import Forked
from tests.pooler import PREPARED_STATEMENTS_SINCE, needs_pooler, pooled, pooler_version
from tests.services import OwnServices, Services
from tests.waiting import PATIENCE_S, until

REPOSITORY = Path(__file__).parents[2]

SECONDS = float(os.environ.get("GAP_PROOF_SECONDS", "1.5"))
#: The other logs only have to take part: nothing is asserted of them.
OTHERS_SECONDS = float(os.environ.get("GAP_PROOF_SECONDS", "0.3"))
SESSIONS = 60

#: How long a reader may take to see what was committed before it counts as standing still.
STALLED_S = 2.0

#: Between two reads. A number that was taken waits longer for its commit, so that this many see whatever there is to see.
BETWEEN_READS_S = 0.002

#: Time passes between taking a number and committing: a slow disk, a replica, a busy machine. Some never commit.
SLOW_COMMITS = """
CREATE FUNCTION slow_commit() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM pg_sleep(random() * 0.01);
    IF random() < 0.05 THEN
        RAISE EXCEPTION 'rolled back' USING ERRCODE = 'serialization_failure';
    END IF;
    RETURN NULL;
END
$$;
CREATE CONSTRAINT TRIGGER slow_commit AFTER INSERT ON {} DEFERRABLE INITIALLY DEFERRED FOR EACH ROW
EXECUTE FUNCTION slow_commit()
"""
WRITING = """
SELECT pid
  FROM pg_stat_activity
 WHERE datname = current_database() AND pid <> pg_backend_pid() AND state <> 'idle' AND query ~* 'insert|append'
 ORDER BY random()
 LIMIT 1
"""
KILL_ONE = sql.SQL("SELECT pg_terminate_backend(pid) FROM ({}) writing").format(sql.SQL(WRITING))


class Findings:
    """What a reader was given, against what there is."""

    def __init__(self, seen: list[Mark], there: set[Mark]) -> None:
        counts = Counter(seen)
        self.events = len(there)
        self.lost = len(there - counts.keys())
        self.doubled = sum(count - 1 for count in counts.values())
        last: dict[str, int] = {}
        self.reordered = 0
        for stream, number in seen:
            self.reordered += number < last.get(stream, 0)
            last[stream] = number

    @property
    def wrong(self) -> tuple[int, int, int]:
        return self.lost, self.doubled, self.reordered

    def __str__(self) -> str:
        return f"{self.events} events: {self.lost} lost, {self.doubled} doubled, {self.reordered} reordered"


class Reading:
    """A reader at work."""

    def __init__(self, log: Log) -> None:
        self._log = log
        self.seen = list[Mark]()

    @asynccontextmanager
    async def going_on(self) -> AsyncGenerator[None]:
        task = asyncio.create_task(self._read())
        try:
            yield
        finally:
            task.cancel()
            await asyncio.wait((task,))
            if not task.cancelled():
                # Something that a reader may never see, such as a gap.
                task.result()

    async def _read(self) -> None:
        while True:
            with preserve_cancellation(), suppress(*BROKEN):
                self.seen += await self._log.read()
            await asyncio.sleep(BETWEEN_READS_S)

    async def sees(self, marks: set[Mark], *, seconds_max: float = STALLED_S) -> bool:
        """Whether it gets to see all of `marks` in time."""
        with suppress(TimeoutError):
            await until(lambda: marks <= set(self.seen), seconds_max=seconds_max)
        return marks <= set(self.seen)


def report(log: Any, what: object) -> None:
    sys.stdout.write(f"{log.name}: {what}\n")


class Writers:
    """Three processes that write to two streams each, and are started again when they were killed."""

    def __init__(self, which: int, url: str, folder: Path) -> None:
        self._arguments = [(str(which), url, *streams) for streams in (("0", "1"), ("2", "3"), ("4", "5"))]
        self._output = folder / "writers.log"
        self._turns = itertools.cycle(range(len(self._arguments)))
        self._processes = [self._start(arguments) for arguments in self._arguments]

    def kill_one(self) -> None:
        """kill -9 the next one, wherever it is, and start another in its place."""
        place = next(self._turns)
        self._processes[place].kill()
        self._processes[place] = self._start(self._arguments[place])

    def kill_all(self) -> None:
        for process in self._processes:
            process.kill()

    def _start(self, arguments: tuple[str, ...]) -> Forked:
        output, env = self._output, dict(os.environ)
        return Forked("tests.chaos.writer", *arguments, cwd=REPOSITORY, env=env, stdout=output, stderr=output)


@pytest.mark.parametrize("kind", LOGS, ids=lambda kind: kind.name)
async def test_random_rollbacks_and_kills_make_a_reader_neither_lose_double_nor_reorder_events(
    kind: Any, database_url: str, owner_conn: psycopg.AsyncConnection, tmp_path: Path
) -> None:
    async with kind.opened(database_url) as log:
        await owner_conn.execute(sql.SQL(SLOW_COMMITS).format(sql.Identifier(log.table)))
        reading, clock = Reading(log), asyncio.get_running_loop().time

        async def written(count: int) -> bool:
            return len(await stored_marks(database_url, log)) >= count

        async def quiet() -> bool:
            return await (await owner_conn.execute(WRITING)).fetchone() is None

        async with reading.going_on():
            writers = Writers(LOGS.index(kind), database_url, tmp_path)
            try:
                await until(lambda: written(STREAMS))
                end_s = clock() + (SECONDS if kind is LOGS[0] else OTHERS_SECONDS)
                while clock() < end_s:
                    for _ in range(3):
                        await owner_conn.execute(KILL_ONE)
                        await asyncio.sleep(0.1)
                    await asyncio.to_thread(writers.kill_one)
            finally:
                writers.kill_all()
            # The database does not know yet that they are dead: what they sent last may still be written.
            await until(quiet)
            there = await stored_marks(database_url, log)
            await reading.sees(there)

    found = Findings(reading.seen, there)
    report(log, found)
    assert found.events > STREAMS
    if kind is LOGS[0]:
        assert found.wrong == (0, 0, 0)


@pytest.mark.parametrize("kind", LOGS, ids=lambda kind: kind.name)
async def test_idle_open_transactions_neither_stall_a_reader_nor_make_it_lose_events(
    kind: Any, database_url: str, services: Services, owner_conn: psycopg.AsyncConnection
) -> None:
    elsewhere = services.create_database(f"elsewhere_{os.getpid()}_{LOGS.index(kind)}")
    await owner_conn.execute("CREATE TABLE scratch (n integer)")
    async with kind.opened(database_url) as log, AsyncExitStack() as stack:
        reading = Reading(log)

        async def sit(url: str, statement: LiteralString | sql.Composed) -> psycopg.AsyncConnection:
            connection = await stack.enter_async_context(await psycopg.AsyncConnection.connect(url))
            await connection.execute(statement)
            return connection

        async def written(number: int) -> set[Mark]:
            await asyncio.gather(*(log.write(stream, number) for stream in range(STREAMS)))
            return await stored_marks(database_url, log)

        async with reading.going_on():
            undisturbed = await reading.sees(await written(1), seconds_max=PATIENCE_S)
            sitters = [await sit(database_url, "INSERT INTO scratch VALUES (1)") for _ in range(SESSIONS // 2)]
            reads = sql.SQL("SELECT FROM {}").format(sql.Identifier(log.table))
            sitters += [await sit(database_url, reads) for _ in range(SESSIONS // 2)]
            with_sitters = await reading.sees(await written(2))
            for sitter in sitters:
                await sitter.rollback()
            other = await sit(elsewhere, "CREATE TABLE scratch (n integer)")
            with_other = await reading.sees(await written(3))
            await other.rollback()
            afterwards = await reading.sees(await stored_marks(database_url, log))
    services.drop_database(elsewhere.rpartition("/")[2])

    found = Findings(reading.seen, await stored_marks(database_url, log))
    stalled = [
        name
        for name, seen in (
            # Not to be seen without any trouble, or when it is over, is a loss: some logs lose at any time.
            ("no trouble", undisturbed),
            (f"{SESSIONS} idle sessions", with_sitters),
            ("a write elsewhere", with_other),
            ("trouble that is over", afterwards),
        )
        if not seen
    ]
    report(log, f"{found}; stalled by {', '.join(stalled) or 'nothing'}")
    if kind is LOGS[0]:
        assert (found.wrong, stalled) == ((0, 0, 0), [])


async def test_a_reader_loses_no_events_after_a_dump_is_restored_into_a_younger_cluster(
    own_services: OwnServices, database_url: str
) -> None:
    # Everything was written in this old cluster of the tests; the other one is fresh and has had few transactions.
    async with await psycopg.AsyncConnection.connect(database_url, autocommit=True) as connection:
        await connection.execute(
            "DO $$ BEGIN FOR i IN 1..20000 LOOP BEGIN PERFORM pg_current_xact_id(); EXCEPTION WHEN others THEN NULL; END;"
            " END LOOP; END $$"
        )
    async with AsyncExitStack() as stack:
        logs = [await stack.enter_async_context(kind.opened(database_url)) for kind in LOGS if kind is not LOGS[2]]
        readings = [Reading(log) for log in logs]
        for log, reading in zip(logs, readings, strict=True):
            async with reading.going_on():
                for number in (1, 2):
                    await log.write(0, number)
                # Transactions of other tests, which are of this cluster too, hold some of these readers up for a while.
                assert await reading.sees(await stored_marks(database_url, log), seconds_max=PATIENCE_S)

        younger = await asyncio.to_thread(dump_and_restore, database_url, own_services.database_url)

        for log, reading in zip(logs, readings, strict=True):
            await log.move(younger)
            async with reading.going_on():
                for number in (3, 4):
                    await log.write(0, number)
                there = await stored_marks(younger, log)
                stalled = not await reading.sees(there)
            found = Findings(reading.seen, there)
            report(log, f"{found}{', for ever' if stalled else ''}")
            if log.name == LOGS[0].name:
                assert (found.events, found.wrong) == (4, (0, 0, 0))


def dump_and_restore(source: str, cluster: str) -> str:
    """The database as a fresh one of the other cluster; its URL."""
    target = cluster.rpartition("/")[0] + "/restored"
    with psycopg.connect(cluster, autocommit=True) as connection:
        connection.execute("CREATE DATABASE restored")
    programs = postgres_programs(current_account())
    dump = subprocess.run([programs / "pg_dump", "--no-owner", source], check=True, capture_output=True)
    psql = [programs / "psql", "--quiet", "--no-psqlrc", "-v", "ON_ERROR_STOP=1", target]
    subprocess.run(psql, input=dump.stdout, check=True, capture_output=True)
    return target


@needs_pooler
@pytest.mark.parametrize("prepared", [False, True], ids=["unprepared", "prepared"])
async def test_a_reader_behind_a_pooler_in_transaction_mode_loses_no_events(prepared: bool, database_url: str) -> None:  # noqa: FBT001 - a parameter of the test
    if prepared and pooler_version() < PREPARED_STATEMENTS_SINCE:
        pytest.skip("This PgBouncer keeps no prepared statements")
    async with pooled(database_url, prepared=prepared) as url, OurLog.opened(url, prepared=prepared) as log:
        reading, clock = Reading(log), asyncio.get_running_loop().time
        end_s = clock() + SECONDS
        async with reading.going_on():
            await asyncio.gather(*(write(log, stream, lambda: clock() > end_s) for stream in range(STREAMS)))
            there = await stored_marks(database_url, log)
            assert await reading.sees(there)

    found = Findings(reading.seen, there)
    report(log, f"behind a pooler: {found}")
    assert found.events > STREAMS
    assert found.wrong == (0, 0, 0)
