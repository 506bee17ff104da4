"""Endpoints that are slow or have ways of their own, at the end of real connections."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from hydracore.agent.expressclaw import turn
from hydracore.agent.expressclaw.model_client import ModelRefused, ModelSlow
from hydracore.modelsim.script import MARK
from tests.claw_fixtures import Claw, claw_fixture, control_plane_fixture, modelsim_fixture
from tests.modelsim_fixtures import ModelSim
from tests.raw_endpoint import heard, raw_endpoint
from tests.waiting import until

__all__ = ["claw_fixture", "control_plane_fixture", "modelsim_fixture"]

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n"


def piece(word: str, finish_reason: str | None) -> bytes:
    choice: dict[str, Any] = {"delta": {"content": word}, "finish_reason": finish_reason}
    return f"data: {json.dumps({'choices': [choice]})}\n\n".encode()


async def test_an_empty_reason_with_every_word_ends_no_answer() -> None:
    said: list[str] = []

    async with raw_endpoint(HEAD, piece("Hello ", ""), piece("you", "")) as broken:
        with pytest.raises(ModelRefused, match="the stream broke off"):
            await heard(broken.base_url, said)
    async with raw_endpoint(HEAD, piece("Good ", ""), piece("bye", "stop")) as whole:
        await heard(whole.base_url, said)

    assert said == ["Hello ", "you", "Good ", "bye"]


async def test_the_first_word_and_those_after_it_have_limits_of_their_own() -> None:
    said: list[str] = []

    async with raw_endpoint(HEAD, piece("Well", None), pause_s=0.1, stays=True) as slow:
        with pytest.raises(ModelSlow, match=r"no word for 0\.05 s"):
            await heard(slow.base_url, said, next_word_s=0.05)

    assert said == ["Well"]


async def test_what_is_left_for_first_words_does_not_hurry_an_answer_that_has_begun(
    claw: Claw, modelsim: ModelSim, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(turn, "FIRST_WORD_MAX_S", 2.0)
    clock = asyncio.get_running_loop().time
    await modelsim.fault("hold", after_tokens=1)

    begun_s = clock()
    asking = asyncio.create_task(claw.chat("Hello"))
    await until(lambda: clock() > begun_s + 2.5)
    await modelsim.release()

    answer = await asking
    assert (answer["model"], answer["message"]) == ("first", f"{MARK} You said: Hello")
