"""Generations, the builds of a projection: create their tables, index them, drop them.

The live generation's tables are in the schema `public`, where the code finds them. Any other generation has a schema of
its own, with the same names of tables, indexes and constraints. So a swap only moves tables between schemas, and
changes nothing else about them.
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
#: Lifts the session's time limits, for long work.
UNLIMITED_SESSION = Statements("events", "session.sql")["unlimited"]
_LIVE_GENERATION = _SQL["live_generation"]
_NEWEST_IN_STATES = _SQL["newest_in_states"]
_LAST_REPLACED = _SQL["last_replaced"]
_TABLES_MISSING = _SQL["tables_missing"]
_NAMES_TAKEN = _SQL["names_taken"]
_ALL_IN_STATES = _SQL["all_in_states"]
_INSERT_GENERATION = _SQL["insert_generation"]
_SET_TARGETS = _SQL["set_targets"]
_AHEAD = _SQL["ahead"]
_INDEX_SESSION = _SQL["index_session"]
_SET_STATE = _SQL["set_state"]
_CREATE_CHECKPOINTS_AT_TARGETS = _SQL["create_checkpoints_at_targets"]
_CREATE_CHECKPOINTS_AT_BEGINNING = _SQL["create_checkpoints_at_beginning"]
_DELETE_CHECKPOINTS = _SQL["delete_checkpoints"]
_DELETE_GENERATION = _SQL["delete_generation"]
_INDEXED_COLUMNS = _SQL["indexed_columns"]
_LIMIT_LOCK_WAIT = _SQL["limit_lock_wait"]
_OWNERS = _SQL["owners"]
_PRIVILEGES = _SQL["privileges"]
_PROGRESS = _SQL["progress"]

#: The most seconds that a drop waits for those who use the generation.
DROP_S_MAX = 5.0

#: The states of a build that is in progress, or was interrupted.
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


async def live_generation(connection: AsyncConnection, name: str) -> Generation | None:
    """The live generation; None for a projection that was never built here."""
    return await _one(connection, _LIVE_GENERATION, (name,))


class Live(NamedTuple):
    """The live generation, and what is missing of it.

    `generation`: with the tables that still exist; None for a projection that was never built in this database.
    `missing`: what somebody has removed of it, in words.
    """

    generation: Generation | None
    missing: list[str]


async def inspect_live(connection: AsyncConnection, name: str) -> Live:
    """The live generation, also where its row in `projection` was removed."""
    found, missing = await live_generation(connection, name), list[str]()
    if found is None:
        found = await newest_in_states(connection, name, "live")
        if found is None:
            return Live(None, [])
        missing.append("its row in `projection`")
    gone = await tables_missing(connection, found)
    there = [table for table in found.tables if table not in gone]
    return Live(msgspec.structs.replace(found, tables=there), [*missing, *(f"the table {table}" for table in gone)])


async def tables_missing(connection: AsyncConnection, generation: Generation) -> list[str]:
    """The generation's tables that do not exist in its schema."""
    schema = LIVE if generation.state == "live" else generation.schema
    rows = await connection.execute(_TABLES_MISSING, {"schema": schema, "tables": generation.tables})
    return [table for (table,) in await rows.fetchall()]


async def names_taken(connection: AsyncConnection, build: Generation, replaced: Generation | None) -> list[str]:
    """Live relations with names that the build's tables or indexes need, in words. `replaced`'s do not count."""
    tables = [] if replaced is None else replaced.tables
    rows = await connection.execute(_NAMES_TAKEN, {"live": LIVE, "schema": build.schema, "tables": tables})
    found = await rows.fetchall()
    return [f"the table {name}" if of is None else f"the index {name} of {of}" for name, of in found]


async def newest_in_states(connection: AsyncConnection, name: str, *states: str) -> Generation | None:
    return await _one(connection, _NEWEST_IN_STATES, {"name": name, "states": list(states)})


async def unfinished(connection: AsyncConnection, name: str) -> list[Generation]:
    """Builds that are in progress or were interrupted, newest first."""
    return [build for build in reversed(await all_in_states(connection, *UNFINISHED)) if build.name == name]


async def last_replaced(connection: AsyncConnection, name: str) -> Generation | None:
    """The generation that was live before the present one; None where none is kept."""
    return await _one(connection, _LAST_REPLACED, (name,))


async def all_in_states(connection: AsyncConnection, *states: str) -> list[Generation]:
    rows = await (await connection.execute(_ALL_IN_STATES, (list(states),))).fetchall()
    return [Generation(*row) for row in rows]


async def begin(connection: AsyncConnection, projection: Projection) -> Generation:
    """Create a build: tables without indexes, owned by the owner of the live ones, and the target of each lane's fold.

    The targets are read in one statement, so that they are a consistent cut through the log. For a followed projection
    that is live, they are its follower's checkpoints, however old: the build is compared with the live tables there,
    and the follower goes on from there. For any other, they are the heads.

    Raises `NamesTaken` where other relations have the names that the build needs: better now than after the fold.

    Autovacuum is off for the tables until they are live. It holds a lock that the swap needs, and gives it up only to a
    session that has waited for a second (`deadlock_timeout`), longer than the swap ever waits. If it works on the live
    tables during a swap, the swap is tried again.
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
            # Creating them on empty tables is fast, and gives the names to check.
            await connection.execute(projection.ddl["indexes"])
            taken = await names_taken(connection, build, (await inspect_live(connection, projection.name)).generation)
        if taken:
            raise NamesTaken(projection.name, taken)
        for table in tables:
            await connection.execute(composed("ALTER TABLE {} SET (autovacuum_enabled = off)", [table]))
        await _copy_owners(connection, build)
        # Everybody may look up names in the schema.
        await connection.execute(composed("GRANT USAGE ON SCHEMA {} TO PUBLIC", [build.schema]))
        await connection.execute(_SET_TARGETS, build.key | {"followed": not isinstance(projection, Inline)})
    return build


async def index(connection: AsyncConnection, projection: Projection, build: Generation) -> Generation:
    """Create the folded tables' keys and indexes, and the build's checkpoints at its targets."""
    async with connection.transaction():
        await use_schema(connection, build)
        await connection.execute(_INDEX_SESSION)
        await connection.execute(projection.ddl["indexes"])
        await connection.execute(_CREATE_CHECKPOINTS_AT_TARGETS, build.key | {"follower": build.follower})
        await connection.execute(_SET_STATE, build.key | {"state": "indexed"})
    return msgspec.structs.replace(build, state="indexed")


async def create_missing_checkpoints(connection: AsyncConnection, earlier: Generation) -> None:
    """Create the checkpoints that a replaced generation lacks, at the beginning of the log.

    A generation has none in lanes that no follower had entered before it was replaced.
    """
    await connection.execute(_CREATE_CHECKPOINTS_AT_BEGINNING, (earlier.follower,))


async def is_ahead(connection: AsyncConnection, build: Generation) -> bool:
    """Whether the build of a followed projection is ahead of the live tables, so that they cannot be compared."""
    return (await connection.execute(_AHEAD, build.key | {"follower": build.follower})).rowcount > 0


async def analyze(connection: AsyncConnection, build: Generation) -> None:
    """Analyse the columns of the tables' indexes. Only the swap has to wait for that.

    Autovacuum analyses the other columns once the tables are live: an ANALYZE of some columns does not count for it.
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
            await connection.execute(_LIMIT_LOCK_WAIT, (int(DROP_S_MAX * 1000),))
            # The lanes first, in the order of a fold: in the other order the two could deadlock.
            await connection.execute(_DELETE_GENERATION, build.key)
            await connection.execute(composed("DROP SCHEMA IF EXISTS {} CASCADE", [build.schema]))
            await connection.execute(_DELETE_CHECKPOINTS, (build.follower,))
    except LockNotAvailable as error:
        raise GenerationInUse(build.name, build.number) from error


async def drop_schema_left_behind(connection: AsyncConnection, live: Generation) -> None:
    """Drop the schema in which the live generation was built, unless somebody else has put something into it."""
    with suppress(DependentObjectsStillExist):
        await connection.execute(composed("DROP SCHEMA IF EXISTS {} RESTRICT", [live.schema]))


async def use_schema(connection: AsyncConnection, build: Generation) -> None:
    """Make the names of the projection's tables mean those of `build`, until the end of the transaction."""
    await connection.execute(composed("SET LOCAL search_path TO {}, {}", [build.schema, LIVE]))


async def progress(connection: AsyncConnection, build: Generation) -> Progress:
    row = await (await connection.execute(_PROGRESS, build.key)).fetchone()
    assert row is not None
    return Progress(*row)


async def copy_privileges(connection: AsyncConnection, build: Generation) -> None:
    """Grant every privilege on a live table or column on the same table or column of `build`, if that exists.

    Called right before the swap, so that grants and revocations during the build count.
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
    """Give each table the owner of the live table of that name."""
    rows = await connection.execute(_OWNERS, {"schema": LIVE, "tables": build.tables})
    for table, owner in await rows.fetchall():
        await connection.execute(composed("ALTER TABLE {} OWNER TO {}", [table, owner]))


async def _one(connection: AsyncConnection, statement: bytes, parameters: Any) -> Generation | None:
    row = await (await connection.execute(statement, parameters)).fetchone()
    return None if row is None else Generation(*row)


def composed(statement: LiteralString, names: Sequence[str]) -> sql.Composed:
    """`statement` with each `{}` replaced by one of `names`, quoted as an identifier."""
    return sql.SQL(statement).format(*map(sql.Identifier, names))
