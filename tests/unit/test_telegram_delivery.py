"""Answers on their way to Telegram, when the task that sends them is cancelled."""

import asyncio
import threading
from pathlib import Path
from uuid import uuid4

import msgspec
import pytest

from hydracore.agent.expressclaw import telegram_delivery
from hydracore.agent.expressclaw.database import Database
from hydracore.agent.expressclaw.inbox import Inbox
from hydracore.agent.expressclaw.telegram_api import TelegramApi
from hydracore.agent.expressclaw.telegram_delivery import Deliveries, UnsentAnswer, unsent_inbox
from hydracore.cloudsim.main import STOP_GRACE_S
from tests.fake_telegram import TOKEN, running_telegram
from tests.waiting import until

BOT = "123"


def test_a_send_may_take_at_most_half_of_the_time_that_an_agent_has_to_stop() -> None:
    assert telegram_delivery.SEND_GRACE_S <= STOP_GRACE_S / 2


async def test_an_answer_whose_sender_is_cancelled_before_sending_is_kept_as_unsent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(telegram_delivery, "SEND_GRACE_S", 0)
    database = Database(tmp_path / "chats.sqlite", new_id=uuid4)
    inbox = Inbox(database)
    unsent = UnsentAnswer(5, "Hello")
    async with running_telegram() as telegram:
        api = TelegramApi(token=TOKEN, base_url=telegram.url)
        await inbox.store(BOT, {1: "{}"}, next_update=2)
        # The disk is slow.
        begun, disk = threading.Event(), threading.Event()

        def slow(_: object) -> None:
            begun.set()
            disk.wait()

        database.submit(slow)
        await until(begun.is_set)
        sending = asyncio.create_task(Deliveries(BOT, api, inbox).deliver(BOT, 1, unsent))
        await until(database._thread._work_queue.qsize)
        sending.cancel()
        await until(lambda: any(task.cancelling() for task in asyncio.all_tasks() - {sending}))
        disk.set()
        with pytest.raises(asyncio.CancelledError):
            await sending
        await api.aclose()

        assert telegram.sent == []
    assert await inbox.stored_updates(BOT) == []
    assert await inbox.stored_updates(unsent_inbox(BOT)) == [(1, msgspec.json.encode(unsent).decode())]
    database.close()
