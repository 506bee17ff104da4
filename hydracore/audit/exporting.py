"""`audit export`: writes all events of a tenant or an instance, with what proves them without the database.

One statement reads the heads of all lanes; events up to these never change. So the export shows one
moment without a long transaction: the lanes are read one after the other in short statements, which do
not hinder writers. Memory holds the commands of one window of a lane, and one page of their events.
"""

from __future__ import annotations

import time
from datetime import datetime
from pathlib import Path
from typing import Any
from uuid import UUID

import msgspec
import psycopg
from psycopg import Connection, IsolationLevel
from psycopg.rows import class_row

from events.digest import GENESIS
from events.ids import lane_of
from events.pacing import Pace
from events.seal import Head, Seal, require_well_formed
from events.sql import Statements
from hydracore.audit.atomic_file import atomic_file, check_replaceable
from hydracore.audit.errors import NoSeal, NotInLog
from hydracore.audit.export_files import Format, open_writer
from hydracore.audit.export_records import SealRecord
from hydracore.audit.export_seals import SealFinder
from hydracore.audit.export_writer import ChainRange, ExportedRange, ExportReport, ExportWriter
from hydracore.audit.verifying import Progress
from hydracore.settings import PREPARE_AFTER

_SQL = Statements("hydracore.audit", "exporting.sql")
_RANGE_OF_INSTANCE = _SQL["range_of_instance"]
_RANGES_OF_TENANT = _SQL["ranges_of_tenant"]
_SEALING = Statements("hydracore.audit", "sealing.sql")
_HEADS = _SEALING["heads"]
_LAST_SEAL = _SEALING["last_seal"]


class Request(msgspec.Struct, frozen=True, kw_only=True):
    """What to export, and where to. Either `tenant_id` or `instance_id` is given.

    `sealed_only`: whether to stop at the last seal, so that every event in the file can be proven. `key`: the
    seed of the key that signs seals, with which the file as a whole is signed; empty: it is not signed.
    """

    conninfo: str
    #: psycopg's; None where statements must not stay prepared.
    prepare_threshold: int | None = PREPARE_AFTER
    output: Path
    exported_at: datetime
    tenant_id: str | None = None
    instance_id: UUID | None = None
    format: Format = "jsonl"
    replace: bool = False
    sealed_only: bool = False
    key: bytes = b""
    #: Whether not to give way to writers.
    full_speed: bool = False


def export(request: Request, progress: Progress) -> ExportReport:
    """Write the file, completely or not at all.

    Raises `NotInLog`, `NoSeal`, `FileExists`, `NoRegularFile`, `ParquetMissing`, `ParquetBroken`, `LogCorrupted` where
    a seal is invalid, a command is missing or no calendar has a time, `OSError` and psycopg's errors.
    """
    assert (request.tenant_id is None) != (request.instance_id is None), "an instance or a tenant"
    check_replaceable(request.output, replace=request.replace)
    began_s, pace = time.monotonic(), Pace(full_speed=request.full_speed)
    with psycopg.connect(request.conninfo, autocommit=True, prepare_threshold=request.prepare_threshold) as connection:
        connection.execute("SET TIME ZONE 'UTC'")
        heads, newest, exported_ranges = _read_scope(connection, request)
        seals = SealFinder(connection, newest)
        chain_ranges = [_chain_range(exported, heads, seals) for exported in exported_ranges]
        report = ExportReport(
            output=str(request.output), tenant_id=exported_ranges[0].tenant_id, instance_id=request.instance_id
        )
        progress.begin(sum(each.end.seq - each.start.seq for each in chain_ranges))
        with (
            atomic_file(request.output, replace=request.replace) as draft,
            open_writer(draft, request.format) as write,
        ):
            writer = ExportWriter(connection, write, report=report, pace=pace, key=request.key)
            writer.header(request.exported_at)
            for seal in seals.used_seals():
                writer.put(SealRecord.of(seal))
                report.seals += 1
            for chain_range in chain_ranges:
                writer.lane(chain_range, progress)
            writer.finish()
    report.rested_s = pace.rested_s
    report.size_bytes = request.output.stat().st_size
    report.seconds = time.monotonic() - began_s
    return report


def _read_scope(connection: Connection, request: Request) -> tuple[list[Head], Seal | None, list[ExportedRange]]:
    """The heads up to which to export, the newest seal, and the range to export of each lane, in one snapshot."""
    connection.isolation_level = IsolationLevel.REPEATABLE_READ
    with connection.transaction():
        heads = [Head(*row) for row in connection.execute(_HEADS, binary=True).fetchall()]
        with connection.cursor(row_factory=class_row(Seal), binary=True) as cursor:
            newest = cursor.execute(_LAST_SEAL).fetchone()
        if request.sealed_only:
            if newest is None:
                raise NoSeal
            heads = [require_well_formed(newest).head(lane) for lane in range(len(heads))]
        exported_ranges = _exported_ranges(connection, request, heads)
    connection.isolation_level = None
    if not exported_ranges:
        whose = f"tenant {request.tenant_id}" if request.instance_id is None else f"instance {request.instance_id}"
        raise NotInLog(f"The log has no events of {whose}{' that are sealed' if request.sealed_only else ''}")
    return heads, newest, exported_ranges


def _exported_ranges(connection: Connection, request: Request, heads: list[Head]) -> list[ExportedRange]:
    if request.instance_id is None:
        parameters: dict[str, Any] = {"tenant": request.tenant_id, "heads": [head.seq for head in heads]}
        return [ExportedRange(*row) for row in connection.execute(_RANGES_OF_TENANT, parameters)]
    lane = lane_of(request.instance_id)
    parameters = {"lane": lane, "stream": request.instance_id, "upto": heads[lane].seq}
    return [ExportedRange(*row) for row in connection.execute(_RANGE_OF_INSTANCE, parameters)]


def _chain_range(exported: ExportedRange, heads: list[Head], seals: SealFinder) -> ChainRange:
    """The part of a lane from the last seal before the first event to the first seal that covers the last event.

    Where there is no such seal, it begins at the lane's beginning, or ends at its head.
    """
    before = seals.last_before(exported.lane, exported.first)
    covering = seals.first_covering(exported.lane, exported.last)
    start = None if before is None else before.head(exported.lane)
    at_beginning = start is None or start.seq == 0
    return ChainRange(
        exported=exported,
        start=Head(0, GENESIS) if start is None or at_beginning else start,
        seal_number=0 if before is None or at_beginning else before.number,
        end=heads[exported.lane] if covering is None else covering.head(exported.lane),
        sealed_head=seals.sealed_head(exported.lane),
    )
