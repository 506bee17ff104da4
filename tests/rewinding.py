"""Takes the last event of an instance out of the log, as where a standby takes over that lacks it."""

from __future__ import annotations

from uuid import UUID

import psycopg

from events.ids import lane_of


def rewind(database_url: str, stream_id: UUID) -> None:
    """Have the log as it was before its last event, which is the instance's."""
    with psycopg.connect(database_url) as owner:
        ((seq,),) = owner.execute("SELECT head FROM lane_head WHERE lane = %s", (lane_of(stream_id),)).fetchall()
        place = (lane_of(stream_id), seq)
        owner.execute("DELETE FROM event WHERE lane = %s AND seq = %s", place)
        owner.execute("DELETE FROM command WHERE lane = %s AND first_seq = %s", place)
        owner.execute("UPDATE stream SET version = version - 1 WHERE stream_id = %s", (stream_id,))
