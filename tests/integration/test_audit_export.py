"""`audit export` and `audit verify-export` as their users run them: on a log that is in use, and without a database."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from click.testing import Result
from msgspec.structs import replace

from events.ids import instance_id_for, lane_of
from hydracore.audit import export_parquet, export_writer
from hydracore.audit import export_records as r
from hydracore.audit.export_files import read_records
from tests.sealed_log import LANE, Log, SealedLogs, run_audit
from tests.store_commands import create_instance, origin, request

ELSEWHERE = "postgresql://nobody@127.0.0.1:1/nothing"


@pytest.fixture
async def log(sealed_logs: SealedLogs, tmp_path: Path) -> AsyncGenerator[Log]:
    async with sealed_logs.copy(tmp_path) as made:
        yield made


async def grow(log: Log) -> None:
    """A fourth instance in the lane; events of others, also of another tenant, come before, between and after its own."""
    await others(log, in_lane("other", "bob"))
    await others(log, "elsewhere")
    log.ids.append(await create_instance(log.store, key=in_lane("acme", "ada")))
    for n in range(5):
        await log.rename(0, f"other {n}")
        await log.rename(3, f"name {n}")


def in_lane(tenant_id: str, customer_id: str) -> str:
    """An idempotency key under which the customer's instance is in the lane of all others."""
    keys = (f"key {number}" for number in range(10_000))
    return next(
        key
        for key in keys
        if lane_of(instance_id_for(tenant_id=tenant_id, customer_id=customer_id, idempotency_key=key)) == LANE
    )


async def others(log: Log, key: str) -> None:
    """An instance of another tenant."""
    stream_id = instance_id_for(tenant_id="other", customer_id="bob", idempotency_key=key)
    await log.store.create(stream_id, replace(request("bob", key), tenant_id="other"), origin())


def names_in(folder: Path) -> list[str]:
    return sorted(each.name for each in folder.iterdir())


def exported(log: Log, path: Path, *words: str, **environ: str) -> dict[str, Any]:
    result = run_audit(log, "export", "--output", str(path), "--json", *words, **environ)
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def verified(log: Log, path: Path, *words: str, **environ: str) -> tuple[int, dict[str, Any]]:
    """Verify without the database, whatever the settings say."""
    environ = {"HYDRACORE_DATABASE_URL": ELSEWHERE, **environ}
    result = run_audit(log, "verify-export", str(path), "--json", *words, **environ)
    return result.exit_code, json.loads(result.stdout)


@pytest.mark.parametrize("form", ["jsonl", "parquet"])
@pytest.mark.parametrize("window", [5_000, 2])
async def test_exports_of_an_instance_and_of_a_tenant_verify_without_the_database(
    log: Log, tmp_path: Path, form: str, window: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(export_writer, "WINDOW", window)
    await grow(log)
    await log.sealer.seal()
    one, all_of_it = tmp_path / "one", tmp_path / "all"

    of_one = exported(log, one, "--format", form, str(log.ids[3]), HYDRACORE_SEAL_KEY="")
    of_all = exported(log, all_of_it, "--format", form, "--tenant", "acme")

    assert (of_one["events"], of_one["steps"], of_one["lanes"], of_one["unsealed"]) == (6, 6, 1, 0)
    assert (of_all["events"], of_all["steps"], of_all["streams"], of_all["signed"]) == (23, 1, 4, True)
    for path, events, words in ((one, 6, ("--allow-unsigned",)), (all_of_it, 23, ())):
        status, report = verified(log, path, *words)
        assert (status, report["ok"], report["events"], report["findings"]) == (0, True, events, [])
    # The chain begins where the last seal before the instance ended, and the file has nothing of what was before.
    (lane,) = [placed.record for placed in read_records(one) if isinstance(placed.record, r.LaneRecord)]
    assert (lane.after, lane.number) == (12, 2)


async def test_an_export_of_a_lane_with_a_huge_gap_fails_and_leaves_no_file(log: Log, tmp_path: Path) -> None:
    path = tmp_path / "all.jsonl"
    await log.rename(0, "unsealed")
    with psycopg.connect(log.url, autocommit=True) as connection:
        connection.execute(b"UPDATE command SET first_seq = %s WHERE lane = %s AND first_seq = 13", (2**62, LANE))

    result = run_audit(log, "export", "--output", str(path), "--tenant", "acme")

    assert result.exit_code == 1
    assert "Lane 6 at 13:" in result.stderr
    assert not path.exists()


async def test_an_export_contains_no_data_of_other_instances_and_tenants(log: Log, tmp_path: Path) -> None:
    await grow(log)
    path = tmp_path / "one.jsonl"

    exported(log, path, str(log.ids[3]))

    text = path.read_text()
    assert str(log.ids[3]) in text
    assert not [each for each in log.ids[:3] if str(each) in text]
    assert "other 1" not in text
    with psycopg.connect(log.url) as connection:
        rows = connection.execute("SELECT DISTINCT stream_id::text FROM event WHERE tenant_id = 'other'")
        of_another_tenant = [stream_id for (stream_id,) in rows.fetchall()]
    assert len(of_another_tenant) == 2
    assert not [words for words in (*of_another_tenant, '"other"', r"\"bob\"") if words in text]


async def test_an_export_of_a_log_in_use_is_consistent_and_verifies(log: Log, tmp_path: Path) -> None:
    stop = asyncio.Event()

    async def write(number: int) -> None:
        count = 0
        while not stop.is_set():
            count += 1
            await log.rename(number, f"name {count}")

    writers = [asyncio.create_task(write(number)) for number in range(3)]
    for attempt in range(5):
        path = tmp_path / f"{attempt}.jsonl"
        done = await asyncio.to_thread(exported, log, path, "--tenant", "acme")

        status, report = await asyncio.to_thread(verified, log, path)
        assert (status, report["events"]) == (0, done["events"])
        await log.sealer.seal()
    stop.set()
    await asyncio.gather(*writers)


async def test_unsealed_events_of_an_export_are_reported_and_can_be_left_out(log: Log, tmp_path: Path) -> None:
    await log.rename(0, "third")
    path, sealed = tmp_path / "all.jsonl", tmp_path / "sealed.jsonl"

    result = run_audit(log, "export", "--output", str(path), "--tenant", "acme", HYDRACORE_SEAL_KEY="")
    of_sealed = exported(log, sealed, "--tenant", "acme", "--sealed", HYDRACORE_SEAL_KEY="")

    assert "note: 1 event is not sealed yet" in result.stdout
    status, report = verified(log, path)
    assert (status, {each["kind"] for each in report["findings"]}) == (1, {"not_signed", "not_sealed"})
    assert (of_sealed["events"], verified(log, sealed)[0], verified(log, sealed, "--allow-unsigned")[0]) == (12, 1, 0)


async def test_a_sealed_export_fails_as_long_as_there_is_no_seal(log: Log, tmp_path: Path) -> None:
    with psycopg.connect(log.url, autocommit=True) as connection:
        connection.execute("DELETE FROM seal")

    result = run_audit(log, "export", "--output", str(tmp_path / "sealed.jsonl"), "--tenant", "acme", "--sealed")

    assert result.exit_code != 0
    assert "There is no seal yet" in result.stderr
    assert names_in(tmp_path) == names_in(log.file.path.parent)


async def test_a_failed_export_leaves_no_file_and_an_existing_file_is_replaced_only_with_force(
    log: Log, tmp_path: Path
) -> None:
    path = tmp_path / "mine.jsonl"
    path.write_text("precious")

    refused = run_audit(log, "export", "--output", str(path), "--tenant", "acme")
    unknown = run_audit(log, "export", "--output", str(tmp_path / "x"), "--tenant", "nobody")
    nowhere = run_audit(log, "export", "--output", str(tmp_path / "no" / "x"), "--tenant", "acme")
    unreachable = run_audit(
        log, "export", "--output", str(tmp_path / "x"), "--tenant", "acme", HYDRACORE_DATABASE_URL=ELSEWHERE
    )

    assert [each.exit_code for each in (refused, unknown, nowhere, unreachable)] == [2, 2, 3, 3]
    assert "already exists: choose another name, or use --force" in refused.stderr
    assert "The log has no events of tenant nobody" in unknown.stderr
    assert (
        nowhere.stderr == f"hydracore: cannot write {tmp_path / 'no' / 'x'}: there is no directory {tmp_path / 'no'}\n"
    )
    assert path.read_text() == "precious"
    assert names_in(tmp_path) == ["mine.jsonl", "seals.jsonl"]
    exported(log, path, "--tenant", "acme", "--force")
    assert verified(log, path)[0] == 0


async def test_an_export_of_an_edited_log_fails_its_verification_with_the_place(log: Log, tmp_path: Path) -> None:
    with psycopg.connect(log.url, autocommit=True) as connection:
        connection.execute(
            "UPDATE event SET payload = replace(payload::text, 'first', 'forged')::json WHERE lane = 6 AND seq = 7"
        )
    path = tmp_path / "all.jsonl"
    exported(log, path, "--tenant", "acme")

    status, report = verified(log, path)

    assert (status, [(each["kind"], each["lane"], each["seq"]) for each in report["findings"]]) == (
        1,
        [("event_edited", 6, 7)],
    )


@pytest.mark.parametrize("words", [(), ("--tenant", "a", "--instance", "bd7c9d8d-101f-5494-b440-91d05382de06")])
async def test_an_export_requires_either_an_instance_or_a_tenant(
    log: Log, tmp_path: Path, words: tuple[str, ...]
) -> None:
    result = run_audit(log, "export", "--output", str(tmp_path / "x"), *words)

    assert result.exit_code == 2
    assert "Give either INSTANCE or --tenant." in result.stderr


@pytest.mark.parametrize(
    ("reason", "expected"),
    [
        (ModuleNotFoundError("No module named 'pyarrow'"), (2, "pip install 'hydracore[parquet]'")),
        # Both as they are raised if there is too little memory.
        (
            ImportError("libarrow.so: failed to map segment from shared object"),
            (3, "pyarrow cannot be loaded (libarrow.so: failed to map segment"),
        ),
        (SystemError("error return without exception set"), (3, "it is damaged, or there is not enough memory")),
    ],
)
async def test_a_parquet_export_without_a_usable_pyarrow_fails_and_says_why(
    log: Log, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reason: Exception, expected: tuple[int, str]
) -> None:
    def absent(_name: str) -> Any:
        raise reason

    monkeypatch.setattr(export_parquet, "importlib", type("Importing", (), {"import_module": staticmethod(absent)}))

    result: Result = run_audit(
        log, "export", "--output", str(tmp_path / "x"), "--tenant", "acme", "--format", "parquet"
    )

    status, said = expected
    assert (result.exit_code, said in result.stderr) == (status, True)
