"""Rows of the database as records."""

import json
import sqlite3
from datetime import datetime

from hydracore.cloudsim.records import ActionRecord, KeyRecord, PastServer, ServerRecord


def server_of(row: sqlite3.Row) -> ServerRecord:
    return ServerRecord(
        id=row["id"],
        name=row["name"],
        status=row["status"],
        created_at=datetime.fromisoformat(row["created_at"]),
        server_type=row["server_type"],
        location=row["location"],
        image=row["image"],
        ipv4=row["ipv4"],
        ipv6=row["ipv6"],
        labels=json.loads(row["labels"]),
        locked=bool(row["locked"]),
        disk_written=bool(row["disk_written"]),
        boot_delay_s=row["boot_delay_s"],
        boot_dead=bool(row["boot_dead"]),
        agent_pid=row["agent_pid"],
        agent_started=row["agent_started"],
    )


def action_of(row: sqlite3.Row) -> ActionRecord:
    finished_at = row["finished_at"]
    return ActionRecord(
        id=row["id"],
        server_id=row["server_id"],
        command=row["command"],
        status=row["status"],
        started_at=datetime.fromisoformat(row["started_at"]),
        finished_at=datetime.fromisoformat(finished_at) if finished_at else None,
        fail_with=row["fail_with"],
    )


def key_of(row: sqlite3.Row) -> KeyRecord:
    return KeyRecord(
        id=row["id"],
        name=row["name"],
        fingerprint=row["fingerprint"],
        public_key=row["public_key"],
        labels=json.loads(row["labels"]),
        created_at=datetime.fromisoformat(row["created_at"]),
    )


def past_of(row: sqlite3.Row) -> PastServer:
    return PastServer(
        id=row["id"],
        name=row["name"],
        labels=json.loads(row["labels"]),
        created_at=row["created_at"],
        deleted_at=row["deleted_at"],
    )
