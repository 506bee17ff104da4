"""The Telegram channel of a real agent against a simulated Telegram."""

from __future__ import annotations

from hydracore.agent.expressclaw.telegram_answers import SORRY, TEXT_ONLY
from hydracore.modelsim.script import ANSWER_PREFIX
from tests.claw_fixtures import (
    Claw,
    agent_fixture,
    claw_fixture,
    control_plane_fixture,
    modelsim_fixture,
    push_config,
    until_connection,
)
from tests.fake_control_plane import FakeControlPlane
from tests.fake_telegram import FakeTelegram
from tests.modelsim_fixtures import ModelSim
from tests.telegram_fixtures import telegram_connection, telegram_fixture, with_bot

__all__ = ["agent_fixture", "claw_fixture", "control_plane_fixture", "modelsim_fixture", "telegram_fixture"]


async def test_a_telegram_message_is_answered_in_the_conversation_of_its_chat(
    control_plane: FakeControlPlane, claw: Claw, modelsim: ModelSim, telegram: FakeTelegram
) -> None:
    assert await telegram_connection(claw) == "off"
    await push_config(claw, control_plane, with_bot(modelsim, telegram))
    await until_connection(claw, "telegram", "connected")

    await telegram.write("Hello bot", chat=5, sender=77)
    await telegram.until_sent(1)
    await telegram.write("What did I say before?", chat=5)
    await telegram.write("Hello from elsewhere", chat=-6)
    sent = await telegram.until_sent(3)

    assert sent[0] == (5, f"{ANSWER_PREFIX} You said: Hello bot")
    assert set(sent[1:]) == {
        (5, f"{ANSWER_PREFIX} Before that you said: Hello bot"),
        (-6, f"{ANSWER_PREFIX} You said: Hello from elsewhere"),
    }
    assert (await claw.conversation("telegram:5"))[0] == ("user", "Hello bot")
    assert len(await claw.conversation("telegram:-6")) == 2
    await control_plane.until(lambda: len(control_plane.metered()) == 3)
    entry = control_plane.metered()[0]
    assert (entry["channel"], entry["end_user"], entry["conversation_id"]) == ("telegram", "telegram:77", "telegram:5")
    await telegram.until(lambda: telegram.unconfirmed == [])


async def test_long_answers_are_split_and_messages_without_text_are_declined(
    control_plane: FakeControlPlane, claw: Claw, modelsim: ModelSim, telegram: FakeTelegram
) -> None:
    await push_config(claw, control_plane, with_bot(modelsim, telegram))

    await telegram.write(None)
    await telegram.until_sent(1)
    await telegram.write("x" * 4096)
    sent = await telegram.until_sent(3)

    assert sent[0] == (5, TEXT_ONLY)
    assert "".join(text for _, text in sent[1:]) == f"{ANSWER_PREFIX} You said: {'x' * 4096}"
    assert len(sent[1][1]) == 4096


async def test_unusual_updates_and_lower_update_numbers_do_not_block_later_messages(
    control_plane: FakeControlPlane, claw: Claw, modelsim: ModelSim, telegram: FakeTelegram
) -> None:
    await push_config(claw, control_plane, with_bot(modelsim, telegram))

    await telegram.update({"edited_message": {"text": "later"}})
    await telegram.update({"message": {"no": "chat"}})
    await telegram.update({"message": {"chat": {"id": 10**30}, "text": "of nobody"}})
    await telegram.write("Bo\udcff")
    await telegram.write("Hello")
    assert await telegram.until_sent(2) == [
        (5, f"{ANSWER_PREFIX} You said: Bo\ufffd"),
        (5, f"{ANSWER_PREFIX} You said: Hello"),
    ]
    # After a week of silence Telegram starts from another number, which may be lower.
    await telegram.until(lambda: telegram.unconfirmed == [])
    await telegram.until(lambda: "offset" not in telegram.polls[-1])
    await telegram.update({"message": {"chat": {"id": 5}, "text": "Again"}}, number=3)
    assert (await telegram.until_sent(3))[2] == (5, f"{ANSWER_PREFIX} You said: Again")


async def test_an_update_with_an_impossible_number_is_reported_and_stops_no_chat(
    control_plane: FakeControlPlane, claw: Claw, modelsim: ModelSim, telegram: FakeTelegram
) -> None:
    await telegram.update({"message": {"chat": {"id": 5}, "text": "Hello"}}, number=2**63)

    await push_config(claw, control_plane, with_bot(modelsim, telegram))

    await until_connection(claw, "telegram", "error: Telegram's answer cannot be parsed")
    assert (await claw.chat("Hello"))["message"] == f"{ANSWER_PREFIX} You said: Hello"
    assert (await claw.status())["error"]["code"] == "telegram_failed"


async def test_a_bad_bot_token_is_reported_and_does_not_stop_the_agent(
    control_plane: FakeControlPlane, claw: Claw, modelsim: ModelSim, telegram: FakeTelegram
) -> None:
    await push_config(claw, control_plane, with_bot(modelsim, telegram, "4711:another-token-0123456789"))

    await until_connection(claw, "telegram", "error: Telegram refuses the bot token (HTTP 401)")
    status = await claw.status()
    assert status["healthy"]
    assert status["error"] == {"code": "telegram_failed", "message": "Telegram refuses the bot token (HTTP 401)"}
    await control_plane.until(lambda: control_plane.heartbeats[-1]["error"] == status["error"])
    await claw.chat("Hello")
    await push_config(claw, control_plane, with_bot(modelsim, telegram, "no token/at all"))
    await until_connection(claw, "telegram", "error: The bot token does not have the form of a Telegram bot token")
    await push_config(claw, control_plane, with_bot(modelsim, telegram))
    await until_connection(claw, "telegram", "connected")
    assert (await claw.status())["error"] is None
    await push_config(claw, control_plane, with_bot(modelsim, telegram, None))
    await until_connection(claw, "telegram", "off")


async def test_polling_errors_are_reported_until_polling_succeeds_again(
    control_plane: FakeControlPlane, claw: Claw, modelsim: ModelSim, telegram: FakeTelegram
) -> None:
    telegram.script("getUpdates", 409, 429, 502)

    await push_config(claw, control_plane, with_bot(modelsim, telegram))

    await until_connection(claw, "telegram", "error: Another program polls with this bot token")
    await until_connection(claw, "telegram", "error: Telegram's rate limit is reached")
    await until_connection(claw, "telegram", "error: Telegram answered HTTP 502")
    await until_connection(claw, "telegram", "connected")


async def test_a_telegram_user_is_told_when_no_model_answers(
    control_plane: FakeControlPlane, claw: Claw, modelsim: ModelSim, telegram: FakeTelegram
) -> None:
    await modelsim.fault("status", times=2)
    await push_config(claw, control_plane, with_bot(modelsim, telegram))

    await telegram.write("Hello")

    assert await telegram.until_sent(1) == [(5, SORRY)]
