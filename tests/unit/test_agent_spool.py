"""The callback spool: dense numbers, in order, on disk, bounded."""

from __future__ import annotations

import stat
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from uuid import UUID, uuid4

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hydracore.agent.errors import SpoolFull
from hydracore.agent.messages import Callback, CallbackEntry
from hydracore.agent.spool import (
    CALLBACKS_KEPT_MAX,
    CALLBACKS_PER_REQUEST_MAX,
    MESSAGE_CHARS_MAX,
    SPOOL_FILE,
    CallbackSpool,
)
from hydracore.agent.sqlite_file import open_sqlite
from hydracore.agent.state import StateDir


@pytest.fixture
def state(tmp_path: Path) -> StateDir:
    return StateDir(tmp_path)


@pytest.fixture
def path(state: StateDir) -> Path:
    return state.path / SPOOL_FILE


@pytest.fixture
def spool(state: StateDir) -> Iterator[CallbackSpool]:
    spool = CallbackSpool(state)
    yield spool
    spool.close()


@pytest.fixture
def boot_id(spool: CallbackSpool) -> UUID:
    boot_id = uuid4()
    spool.add_boot(boot_id)
    return boot_id


def deliver_all(spool: CallbackSpool, boot_id: UUID) -> list[int]:
    """The numbers of the delivered callbacks, in their order."""
    sent: list[int] = []
    while (callback := spool.next_callback(boot_id)) is not None:
        sent += range(callback.seq, callback.last_seq + 1)
        spool.mark_accepted(boot_id, callback.last_seq)
    return sent


def test_every_commit_is_synced_to_disk(path: Path) -> None:
    with closing(open_sqlite(path, lambda _: None)) as db:
        # FULL: with NORMAL a power cut loses the latest commits.
        assert db.execute("PRAGMA synchronous").fetchone() == (2,)


def test_pending_callbacks_are_sent_together_up_to_a_limit(spool: CallbackSpool, boot_id: UUID) -> None:
    for _ in range(CALLBACKS_PER_REQUEST_MAX + 1):
        spool.append(boot_id, "booted", "info", "x")

    first = spool.next_callback(boot_id)

    assert first is not None
    assert (first.seq, first.last_seq) == (1, CALLBACKS_PER_REQUEST_MAX)
    assert deliver_all(spool, boot_id) == list(range(1, CALLBACKS_PER_REQUEST_MAX + 2))


def test_numbers_are_dense_from_1_for_each_boot(spool: CallbackSpool, boot_id: UUID) -> None:
    first = [spool.append(boot_id, "booted", "info", "x").seq for _ in range(3)]
    other = uuid4()
    spool.add_boot(other)

    assert first == [1, 2, 3]
    assert spool.append(other, "booted", "info", "x").seq == 1


def test_a_callback_is_pending_until_it_is_accepted(spool: CallbackSpool, boot_id: UUID) -> None:
    spool.append(boot_id, "booted", "info", "up")
    spool.append(boot_id, "enrolled", "warning", "in")

    both = Callback(
        boot_id=boot_id,
        seq=1,
        stage="booted",
        level="info",
        message="up",
        following=(CallbackEntry(stage="enrolled", level="warning", message="in"),),
    )
    assert spool.next_callback(boot_id) == both
    assert spool.next_callback(boot_id) == both
    spool.mark_accepted(boot_id, 1)
    assert spool.next_callback(boot_id) == Callback(
        boot_id=boot_id, seq=2, stage="enrolled", level="warning", message="in"
    )
    spool.mark_accepted(boot_id, 2)
    assert spool.next_callback(boot_id) is None


def test_appended_callbacks_are_there_after_a_crash(state: StateDir, spool: CallbackSpool, boot_id: UUID) -> None:
    spool.append(boot_id, "booted", "info", "x")
    spool.append(boot_id, "enrolled", "info", "x")
    spool.mark_accepted(boot_id, 1)
    # Opened beside the first connection, which never closes cleanly: as after kill -9.
    reopened = CallbackSpool(state)

    assert deliver_all(reopened, boot_id) == [2]
    assert reopened.append(boot_id, "secrets", "info", "x").seq == 3
    reopened.close()


def test_delivered_callbacks_can_be_sent_again_on_request(spool: CallbackSpool, boot_id: UUID) -> None:
    for _ in range(4):
        spool.append(boot_id, "booted", "info", "x")
    deliver_all(spool, boot_id)

    assert spool.resend_from(boot_id, 2)
    assert deliver_all(spool, boot_id) == [2, 3, 4]


@pytest.mark.parametrize("seq", [-1, 0, 3, 1000])
def test_numbers_that_were_never_assigned_cannot_be_resent(spool: CallbackSpool, boot_id: UUID, seq: int) -> None:
    spool.append(boot_id, "booted", "info", "x")
    spool.append(boot_id, "booted", "info", "x")

    assert not spool.resend_from(boot_id, seq)
    assert deliver_all(spool, boot_id) == [1, 2]


def test_a_new_boot_discards_callbacks_of_earlier_boots(spool: CallbackSpool, boot_id: UUID) -> None:
    spool.append(boot_id, "booted", "info", "x")
    spool.mark_enrolled(boot_id)

    spool.add_boot(uuid4())

    assert spool.next_callback(boot_id) is None
    assert spool.boots_with_pending() == []


def test_only_enrolled_boots_with_undelivered_callbacks_are_pending(spool: CallbackSpool, boot_id: UUID) -> None:
    spool.append(boot_id, "booted", "info", "x")
    assert spool.boots_with_pending() == []

    spool.mark_enrolled(boot_id)
    assert spool.boots_with_pending() == [boot_id]

    deliver_all(spool, boot_id)
    assert spool.boots_with_pending() == []


def test_a_full_spool_refuses_new_callbacks_and_keeps_what_it_has(spool: CallbackSpool, boot_id: UUID) -> None:
    for _ in range(CALLBACKS_KEPT_MAX):
        spool.append(boot_id, "healthy", "info", "x")

    with pytest.raises(SpoolFull):
        spool.append(boot_id, "healthy", "info", "one too many")

    spool.mark_accepted(boot_id, 1)
    assert spool.append(boot_id, "healthy", "info", "x").seq == CALLBACKS_KEPT_MAX + 1
    assert deliver_all(spool, boot_id) == list(range(2, CALLBACKS_KEPT_MAX + 2))
    assert not spool.resend_from(boot_id, 1), "trimmed"


def test_a_long_message_is_truncated(spool: CallbackSpool, boot_id: UUID) -> None:
    spool.append(boot_id, "booted", "error", "x" * (MESSAGE_CHARS_MAX + 1))

    callback = spool.next_callback(boot_id)

    assert callback is not None
    assert len(callback.message) == MESSAGE_CHARS_MAX


@pytest.mark.parametrize("begin", [0, 4096])
def test_a_damaged_file_is_set_aside_and_a_new_one_created(state: StateDir, path: Path, begin: int) -> None:
    before = CallbackSpool(state)
    before.add_boot(uuid4())
    before.close()
    content = path.read_bytes()
    damaged = content[:begin] + b"something else altogether" * 400
    path.write_bytes(damaged)

    spool = CallbackSpool(state)
    boot_id = uuid4()
    spool.add_boot(boot_id)

    assert spool.append(boot_id, "booted", "info", "x").seq == 1
    assert path.with_name("spool.sqlite.damaged").read_bytes() == damaged
    spool.close()


def test_the_files_of_the_spool_are_accessible_to_the_agent_s_user_alone(
    path: Path, spool: CallbackSpool, boot_id: UUID
) -> None:
    spool.append(boot_id, "booted", "info", "x")

    modes = {file.name: stat.S_IMODE(file.stat().st_mode) for file in path.parent.iterdir()}

    assert modes == {"spool.sqlite": 0o600, "spool.sqlite-wal": 0o600, "spool.sqlite-shm": 0o600}


@settings(
    max_examples=30,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(actions=st.lists(st.sampled_from(["append", "accept", "reply_lost", "crash", "restore"]), max_size=30))
def test_a_receiver_that_refuses_gaps_gets_everything_once_and_in_order(
    state: StateDir, path: Path, actions: list[str]
) -> None:
    path.unlink(missing_ok=True)
    spool = CallbackSpool(state)
    boot_id = uuid4()
    spool.add_boot(boot_id)
    appended = 0
    received: list[int] = []

    def send(*, reply_arrives: bool) -> None:
        callback = spool.next_callback(boot_id)
        if callback is None:
            return
        if callback.seq > len(received) + 1:
            assert spool.resend_from(boot_id, len(received) + 1)
            return
        if callback.seq == len(received) + 1:
            received.append(callback.seq)
        if reply_arrives:
            spool.mark_accepted(boot_id, callback.seq)

    for action in actions:
        if action == "append":
            appended = spool.append(boot_id, "healthy", "info", "x").seq
        elif action == "crash":
            spool.close()
            spool = CallbackSpool(state)
        elif action == "restore":
            del received[-2:]
        else:
            send(reply_arrives=action == "accept")
    # One more callback makes a receiver that was restored ask for what it lost.
    appended = spool.append(boot_id, "healthy", "info", "x").seq
    while spool.next_callback(boot_id) is not None:
        send(reply_arrives=True)
    spool.close()

    assert received == list(range(1, appended + 1))
