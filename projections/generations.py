"""Generations: the builds of a projection. Making the tables of one, indexing them, dropping them.

The live generation's tables are in the schema `public`, where the code finds them; any other's are in a schema of its
own, under the same names, with the same names of indexes and constraints. So putting one in another's place is moving
tables between schemas, and everything else about them stays.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from typing import Any, LiteralString, NamedTuple

import msgspec
from psycopg import AsyncConnection, sql
from psycopg.errors import DependentObjectsStillExist, LockNotAvailable

from events.sql import Statements, identifiers
from projections.definition import Inline, Projection
from projections.errors import GenerationInUse, NamesTaken
from projections.tables import LIVE

_SQL = Statements("projections", "generations.sql")
#: Run in each session of work that takes long.
UNLIMITED_SESSION = Statements("events", "session.sql")["unlimited"]
_SERVED = _SQL["served"]
_NEWEST_IN = _SQL["newest_in"]
_LAST_REPLACED = _SQL["last_replaced"]
_TABLES_MISSING = _SQL["tables_missing"]
_NAMES_TAKEN = _SQL["names_taken"]
_ALL_IN = _SQL["all_in"]
_INSERT_GENERATION = _SQL["insert_generation"]
_SET_TARGETS = _SQL["set_targets"]
_AHEAD = _SQL["ahead"]
_INDEX_SESSION = _SQL["index_session"]
_SET_STATE = _SQL["set_state"]
_ENTER_AT_TARGETS = _SQL["enter_at_targets"]
_ENTER_AT_BEGINNING = _SQL["enter_at_beginning"]
_FORGET_FOLLOWER = _SQL["forget_follower"]
_FORGET_GENERATION = _SQL["forget_generation"]
_INDEXED_COLUMNS = _SQL["indexed_columns"]
_WAIT_BRIEFLY = _SQL["wait_briefly"]
_OWNERS = _SQL["owners"]
_PRIVILEGES = _SQL["privileges"]
_PROGRESS = _SQL["progress"]

#: How long whoever drops a generation waits for those who use it.
DROP_S_MAX = 5.0

#: States of a build that is under way, or was when it was killed.
UNFINISHED = ("folding", "indexed")


class Generation(msgspec.Struct, frozen=True):
    """One build. `state`: folding, indexed, live or previous (see `schema.sql`)."""

    name: str
    number: int
    version: int
    tables: list[str]
    state: str

    @property
    def schema(self) -> str:
        """Where its tables are while it is not the live one."""
        return f"{self.name}_g{self.number}"

    @property
    def follower(self) -> str:
        """The name of its checkpoints while it is not the live one."""
        return f"{self.name}@{self.number}"

    @property
    def key(self) -> dict[str, Any]:
        return {"name": self.name, "generation": self.number, "version": self.version}


class Progress(msgspec.Struct, frozen=True):
    lanes: int
    lanes_folded: int
    events: int
    events_folded: int


async def served(connection: AsyncConnection, name: str) -> Generation | None:
    """The live generation; None for a projection that was never built here."""
    return await _one(connection, _SERVED, (name,))


class Live(NamedTuple):
    """`generation`: the live one with the tables that are there; None for a projection that was never built here. `missing`: what
    somebody has taken away of it, in words."""

    generation: Generation | None
    missing: list[str]


async def live(connection: AsyncConnection, name: str) -> Live:
    """What is live, also where nothing says any more that it is."""
    found, missing = await served(connection, name), list[str]()
    if found is None:
        found = await newest_in(connection, name, "live")
        if found is None:
            return Live(None, [])
        missing.append("its row in `projection`")
    gone = await tables_missing(connection, found)
    there = [table for table in found.tables if table not in gone]
    return Live(msgspec.structs.replace(found, tables=there), [*missing, *(f"the table {table}" for table in gone)])


async def tables_missing(connection: AsyncConnection, generation: Generation) -> list[str]:
    """The generation's tables that are not where it has them."""
    schema = LIVE if generation.state == "live" else generation.schema
    rows = await connection.execute(_TABLES_MISSING, {"schema": schema, "tables": generation.tables})
    return [table for (table,) in await rows.fetchall()]


async def names_taken(connection: AsyncConnection, build: Generation, replaced: Generation | None) -> list[str]:
    """What is in the way of the build's tables and indexes where tables are live, in words, once `replaced` has gone from there."""
    tables = [] if replaced is None else replaced.tables
    rows = await connection.execute(_NAMES_TAKEN, {"live": LIVE, "schema": build.schema, "tables": tables})
    found = await rows.fetchall()
    return [f"the table {name}" if of is None else f"the index {name} of {of}" for name, of in found]


async def newest_in(connection: AsyncConnection, name: str, *states: str) -> Generation | None:
    return await _one(connection, _NEWEST_IN, {"name": name, "states": list(states)})


async def unfinished(connection: AsyncConnection, name: str) -> list[Generation]:
    """Builds that are under way or were broken off, newest first."""
    return [build for build in reversed(await all_in(connection, *UNFINISHED)) if build.name == name]


async def last_replaced(connection: AsyncConnection, name: str) -> Generation | None:
    """The generation that was live before the one that is; None where none is kept."""
    return await _one(connection, _LAST_REPLACED, (name,))


async def all_in(connection: AsyncConnection, *states: str) -> list[Generation]:
    rows = await (await connection.execute(_ALL_IN, (list(states),))).fetchall()
    return [Generation(*row) for row in rows]


async def begin(connection: AsyncConnection, projection: Projection) -> Generation:
    """A new build: bare tables of the owner of the live ones, and how far each lane is to be folded.

    That is read in one statement: heads are a cut through the log at one moment. What is followed and live is folded no farther
    than it was followed, however long ago: the two are compared there, and the follower goes on from there.

    Raises `NamesTaken` where it could never be put in place: whoever was told after the fold would have folded for nothing.

    PostgreSQL leaves the tables alone until they are live. Its autovacuum holds a lock that the swap needs, and lets go of it only for
    those who wait for a second (`deadlock_timeout`), as the swap never does: where it is at the live ones, the swap is tried again.
    """
    tables = [table.name for table in projection.tables]
    new = {"name": projection.name, "version": projection.version, "tables": tables}
    async with connection.transaction():
        build = await _one(connection, _INSERT_GENERATION, new)
        assert build is not None
        await connection.execute(composed("CREATE SCHEMA {}", [build.schema]))
        await use_schema(connection, build)
        await connection.execute(projection.ddl["tables"])
        async with connection.transaction(force_rollback=True):
            # Of the bare tables they take no time, and tell their names.
            await connection.execute(projection.ddl["indexes"])
            taken = await names_taken(connection, build, (await live(connection, projection.name)).generation)
        if taken:
            raise NamesTaken(projection.name, taken)
        for table in tables:
            await connection.execute(composed("ALTER TABLE {} SET (autovacuum_enabled = off)", [table]))
        await _copy_owners(connection, build)
        # Everybody finds the schema.
        await connection.execute(composed("GRANT USAGE ON SCHEMA {} TO PUBLIC", [build.schema]))
        await connection.execute(_SET_TARGETS, build.key | {"followed": not isinstance(projection, Inline)})
    return build


async def index(connection: AsyncConnection, projection: Projection, build: Generation) -> Generation:
    """Give the folded tables their keys and indexes, and the build its place in the log."""
    async with connection.transaction():
        await use_schema(connection, build)
        await connection.execute(_INDEX_SESSION)
        await connection.execute(projection.ddl["indexes"])
        await connection.execute(_ENTER_AT_TARGETS, build.key | {"follower": build.follower})
        await connection.execute(_SET_STATE, build.key | {"state": "indexed"})
    return msgspec.structs.replace(build, state="indexed")


async def enter(connection: AsyncConnection, earlier: Generation) -> None:
    """Give a generation that was replaced before anybody had followed it its place in the log, which is the beginning."""
    await connection.execute(_ENTER_AT_BEGINNING, (earlier.follower,))


async def is_ahead(connection: AsyncConnection, build: Generation) -> bool:
    """Whether the build of a followed projection knows more than its live tables, so that the two cannot be compared."""
    return (await connection.execute(_AHEAD, build.key | {"follower": build.follower})).rowcount > 0


async def analyze(connection: AsyncConnection, build: Generation) -> None:
    """Tell the planner about the columns by which rows are looked for; nobody has to wait for it but the swap.

    About the others PostgreSQL does by itself once the tables are live, because they do not count as analyzed by this.
    """
    found = await connection.execute(_INDEXED_COLUMNS, {"schema": build.schema, "tables": build.tables})
    for table, columns in await found.fetchall():
        analyze_table = sql.SQL("ANALYZE {} ({})")
        await connection.execute(analyze_table.format(sql.Identifier(build.schema, table), identifiers(columns)))


async def drop(connection: AsyncConnection, build: Generation) -> None:
    """Remove a generation that is not live, with all its rows. Raises `GenerationInUse`."""
    assert build.state != "live", "what is served is not dropped"
    try:
        async with connection.transaction():
            await connection.execute(_WAIT_BRIEFLY, (int(DROP_S_MAX * 1000),))
            # The lanes first, as whoever folds has them: the other way round each would wait for the other.
            await connection.execute(_FORGET_GENERATION, build.key)
            await connection.execute(composed("DROP SCHEMA IF EXISTS {} CASCADE", [build.schema]))
            await connection.execute(_FORGET_FOLLOWER, (build.follower,))
    except LockNotAvailable as error:
        raise GenerationInUse(build.name, build.number) from error


async def drop_schema_left_behind(connection: AsyncConnection, live: Generation) -> None:
    """Remove the schema in which what is live now was built. What somebody else has put there stays."""
    with suppress(DependentObjectsStillExist):
        await connection.execute(composed("DROP SCHEMA IF EXISTS {} RESTRICT", [live.schema]))


async def use_schema(connection: AsyncConnection, build: Generation) -> None:
    """Until the end of the transaction the names of the projection's tables mean those of `build`."""
    await connection.execute(composed("SET LOCAL search_path TO {}, {}", [build.schema, LIVE]))


async def progress(connection: AsyncConnection, build: Generation) -> Progress:
    row = await (await connection.execute(_PROGRESS, build.key)).fetchone()
    assert row is not None
    return Progress(*row)


async def copy_privileges(connection: AsyncConnection, build: Generation) -> None:
    """Whoever may do something with a live table, or a column of it, may do it with that of `build`. Where somebody was let in or shut
    out while it was built, it is what holds now that counts: so this comes right before the swap.
    """
    parameters = {"schema": LIVE, "tables": build.tables, "build": build.schema}
    rows = await (await connection.execute(_PRIVILEGES, parameters)).fetchall()
    for table, column, grantee, privilege, may_pass_on in rows:
        what = sql.SQL(privilege)
        if column is not None:
            what = sql.SQL("{} ({})").format(what, sql.Identifier(column))
        to = sql.SQL("PUBLIC") if grantee is None else sql.Identifier(grantee)
        grant = sql.SQL("GRANT {} ON {} TO {}").format(what, sql.Identifier(build.schema, table), to)
        await connection.execute(grant + sql.SQL(" WITH GRANT OPTION" if may_pass_on else ""))


async def _copy_owners(connection: AsyncConnection, build: Generation) -> None:
    """The tables are those of whoever has the live ones."""
    rows = await connection.execute(_OWNERS, {"schema": LIVE, "tables": build.tables})
    for table, owner in await rows.fetchall():
        await connection.execute(composed("ALTER TABLE {} OWNER TO {}", [table, owner]))


async def _one(connection: AsyncConnection, statement: bytes, parameters: Any) -> Generation | None:
    row = await (await connection.execute(statement, parameters)).fetchone()
    return None if row is None else Generation(*row)


def composed(statement: LiteralString, names: Sequence[str]) -> sql.Composed:
    """A statement with a `{}` for each of `names`, which are quoted as identifiers."""
    return sql.SQL(statement).format(*map(sql.Identifier, names))
