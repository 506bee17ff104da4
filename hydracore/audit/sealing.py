"""Seals the log periodically, and keeps the copy of the seals outside the database complete.

Any number of relays may do so: numbers have no gaps, and the second of two relays accepts the seal of the first.
Before the lanes are sealed again, they are compared with the seal before, which is trusted only for its signature.
If they differ, nothing is sealed any more: that is an alarm, and another seal would only make the lanes look right.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import NamedTuple, NoReturn

import structlog
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from msgspec.structs import asdict
from psycopg import AsyncConnection
from psycopg.rows import class_row
from psycopg_pool import AsyncConnectionPool

from events.errors import LogCorrupted, StoreUnavailable
from events.retries import with_retries
from events.seal import Head, Seal, find_flaws, make_seal, require_well_formed
from events.sql import Statements
from hydracore.audit.errors import CopyContradicts
from hydracore.audit.seal_file import SealFile
from hydracore.settings import Settings

_SQL = Statements("hydracore.audit", "sealing.sql")
_LAST_SEAL = _SQL["last_seal"]
_WAL_POSITION = _SQL["wal_position"]
_SEALS_AFTER = _SQL["seals_after"]
_ADD_SEAL = _SQL["add_seal"]
_HEADS = _SQL["heads"]
_LINKS_AT_HEADS = _SQL["links_at_heads"]

#: The seals that are copied at a time.
COPY_MAX = 100

_log = structlog.get_logger(__name__)


def utc_now() -> datetime:
    return datetime.now(UTC)


class _WalPosition(NamedTuple):
    """The database of the log, and the bytes of WAL that it has flushed (`written`): `wal_position` in sealing.sql."""

    database: int
    cluster: int
    timeline: str
    written: int

    def may_follow(self, before: _WalPosition) -> bool:
        """Whether this can be the database of `before` at a later time, and not one restored from a backup."""
        return self[:-1] == before[:-1] and self.written >= before.written


class Sealer:
    """`key`: the seed of an Ed25519 key.

    `former_keys`: the public keys before it, oldest first. `file`: the copy, if one is kept.
    """

    def __init__(
        self,
        pool: AsyncConnectionPool,
        *,
        key: bytes,
        former_keys: tuple[bytes, ...] = (),
        file: SealFile | None = None,
        clock: Callable[[], datetime] = utc_now,
    ) -> None:
        self._pool = pool
        self._key = Ed25519PrivateKey.from_private_bytes(key)
        self._public_key = self._key.public_key().public_bytes_raw()
        self._former_keys = former_keys
        #: The newest seal that this sealer has made or built on. If it is removed or replaced in the database,
        #: the next sealing detects that, even where no copy is kept.
        self._last: Seal | None = None
        #: The WAL position of the log when `_last` was last seen there.
        self._position: _WalPosition | None = None
        self._file = file
        self._clock = clock

    async def seal(self, *, age_min: timedelta = timedelta(0)) -> Seal | None:
        """Seal what is new, and complete the copy. Returns the seal, or None.

        None: nothing is new, the last seal is younger than `age_min`, or another sealer was faster.

        Raises `LogCorrupted` where the last seal is not by an accepted key, is not the one that was
        there before, or contradicts the log, `StoreUnavailable`, `OSError` where the copy cannot be
        written, and `CopyContradicts` where it has another seal than the database.
        """
        made = await with_retries(self._pool, lambda connection: self._make(connection, age_min))
        if self._file is not None:
            await self._copy(self._file, made)
        return made

    def clock_lead(self, seal: Seal) -> timedelta:
        """How far the time of a seal is ahead of this process's clock; at least 0."""
        return max(timedelta(0), seal.sealed_at - self._clock())

    async def _make(self, connection: AsyncConnection, age_min: timedelta) -> Seal | None:
        now = self._clock()
        previous = await self._previous(connection)
        # Clocks differ. A seal that is far in the future must not stop the sealing: it counts as old as
        # one far in the past.
        if previous is not None and abs(now - previous.sealed_at) < age_min:
            return None
        heads = [Head(*row) for row in await (await connection.execute(_HEADS, binary=True)).fetchall()]
        if previous is None:
            if not any(head.seq for head in heads):
                return None
        else:
            await _check_sealed_heads(connection, previous, heads)
            if [previous.head(lane) for lane in range(len(heads))] == heads:
                return None
            # The clocks of two relays differ; a seal is never older than the one before it.
            now = max(now, previous.sealed_at)
        seal = make_seal(heads, previous=previous, sealed_at=now, key=self._key)
        added = await connection.execute(_ADD_SEAL, asdict(seal))
        if await added.fetchone() is None:
            return None
        self._last = seal
        return seal

    async def _previous(self, connection: AsyncConnection) -> Seal | None:
        """The seal that the next one builds on; None where there is none yet.

        Raises `LogCorrupted` where it is flawed.
        """
        row = await (await connection.execute(_WAL_POSITION)).fetchone()
        assert row is not None, "a database has a WAL position"
        position, known = _WalPosition(*row), self._last
        previous = next(map(require_well_formed, await _seals(connection, _LAST_SEAL)), None)
        if known is not None and await _seals(connection, _SEALS_AFTER, known.number - 1, 1) != [known]:
            self._require_restore(known, position)
            self._last = None
        self._position = position
        if previous is not None and previous != self._last:
            flaws = find_flaws(previous, previous=None, public_key=self._public_key, former_keys=self._former_keys)
            for flaw in flaws:
                raise LogCorrupted(0, 0, f"seal {previous.number}, which the next one would follow, is invalid: {flaw}")
            self._last = previous
        return previous

    def _require_restore(self, known: Seal, position: _WalPosition) -> None:
        """Log as an error that a restore has lost the seal `known`.

        Raises `LogCorrupted` where there was no restore.
        """
        assert self._position is not None, "a seal was seen somewhere"
        if position.may_follow(self._position):
            what = f"seal {known.number} was removed or replaced since it was made"
            raise LogCorrupted(0, 0, what)
        hint = "if no backup was restored, the log was tampered with: run hydracore audit verify with the copy of the seals"
        _log.error("seals_of_another_database", known=known.number, hint=hint)

    async def _copy(self, file: SealFile, made: Seal | None) -> None:
        copied = await asyncio.to_thread(file.last)
        last = 0
        if copied is not None:
            last = copied.number
            known = await with_retries(self._pool, lambda c: _seals(c, _SEALS_AFTER, last - 1, 1))
            if known != [copied]:
                # A seal is in the database before it is in the copy: the database has lost or replaced it since.
                raise CopyContradicts(file.path, last, made)
        while seals := await with_retries(self._pool, lambda c, last=last: _seals(c, _SEALS_AFTER, last, COPY_MAX)):
            await asyncio.to_thread(file.append, seals)
            last = seals[-1].number


async def keep_sealing(pool: AsyncConnectionPool, settings: Settings) -> None:
    """Seal every `seal_interval_s`, for ever. Without a key, log that there will be no seals, and return."""
    if not settings.seal_key:
        _log.warning(
            "log_is_not_sealed",
            hint="set HYDRACORE_SEAL_KEY: without seals, events removed from the end of the log are not detected",
        )
        return
    await _keep_sealing(sealer_of(pool, settings), settings.seal_interval_s)


def sealer_of(pool: AsyncConnectionPool, settings: Settings) -> Sealer:
    """The sealer of an installation that has a key."""
    file = None if settings.seal_file is None else SealFile(settings.seal_file)
    return Sealer(pool, key=settings.seal_key, former_keys=settings.seal_keys_former, file=file)


async def _keep_sealing(sealer: Sealer, interval_s: float) -> NoReturn:
    # Half the interval: seals of other relays count, too, but a late seal of this relay must not make it skip the next.
    age_min = timedelta(seconds=interval_s / 2)
    while True:
        try:
            seal = await _seal(sealer, age_min)
        except LogCorrupted as error:
            _log.error("seal_refused", lane=error.lane, seq=error.seq, error=str(error))
        except (StoreUnavailable, OSError) as error:
            _log.warning("sealing_waits", error=type(error).__name__, reason=str(error))
        except Exception:  # noqa: BLE001 - a row that HydraCore has not written must not end the relay
            _log.exception("sealing_failed")
        else:
            if seal is not None:
                _log.info("sealed", number=seal.number, events=sum(seal.heads))
        await asyncio.sleep(interval_s)


async def _seal(sealer: Sealer, age_min: timedelta) -> Seal | None:
    """Seal, and log what is wrong but does not prevent it: a copy with other seals, or a seal dated in the future."""
    try:
        made = await sealer.seal(age_min=age_min)
    except CopyContradicts as error:
        _log.error("seals_not_copied", error=str(error))
        made = error.made
    if made is not None and (ahead := sealer.clock_lead(made)):
        hint = "this clock is behind, or another relay's clock was ahead: seals get the later time"
        _log.warning("last_seal_of_the_future", number=made.number, ahead_s=ahead.total_seconds(), hint=hint)
    return made


async def _seals(connection: AsyncConnection, statement: bytes, *parameters: int) -> list[Seal]:
    async with connection.cursor(row_factory=class_row(Seal), binary=True) as cursor:
        return await (await cursor.execute(statement, parameters)).fetchall()


async def _check_sealed_heads(connection: AsyncConnection, previous: Seal, heads: list[Head]) -> None:
    """Raise `LogCorrupted` where a lane is shorter than in `previous`, or has a different link at its sealed head."""
    for lane, head in enumerate(heads):
        if head.seq < previous.heads[lane]:
            what = f"the lane ended at {previous.heads[lane]} when seal {previous.number} was made"
            raise LogCorrupted(lane, head.seq + 1, what)
    cursor = await connection.execute(_LINKS_AT_HEADS, {"heads": previous.heads}, binary=True)
    async for lane, seq, end, link in cursor:
        if (end, link) != (seq, previous.head(lane).link):
            raise LogCorrupted(lane, seq, f"seal {previous.number} does not match this event")
