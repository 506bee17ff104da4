"""Deeply nested JSON as an answer, from every server that is called: the client raises its own error, and does not crash."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from typing import Any
from urllib.parse import urlsplit
from uuid import UUID

import pytest

from hydracore.agent import messages as m
from hydracore.agent.control_plane import BadAnswer, Conflict, ControlPlane
from hydracore.agent.expressclaw.embedding_client import EmbeddingCall, embed
from hydracore.agent.expressclaw.model_client import ModelCallFailed, ModelClient
from hydracore.agent.expressclaw.telegram_api import TelegramApi, TelegramBusy, TelegramUnavailable
from hydracore.agent_client import AgentAddress, AgentBadAnswer, AgentClient
from tests.fake_telegram import TOKEN
from tests.modelsim_fixtures import ModelSim, modelsim_fixture
from tests.raw_endpoint import ask_endpoint, raw_endpoint
from tests.waiting import PATIENCE_S
from workers.providers.base import ProviderOutcomeUnknown, ProviderRetry
from workers.providers.hetzner_http import HetznerHttp
from workers.providers.hetzner_wire import ONE_SERVER

__all__ = ["modelsim_fixture"]

NESTED = b'{"error": ' + b"[" * 100_000


async def ask_agent(url: str, what: Callable[[AgentClient, AgentAddress], Awaitable[Any]]) -> None:
    address = urlsplit(url)
    async with AgentClient(PATIENCE_S) as agent_client:
        await what(agent_client, AgentAddress(address.hostname or "", address.port or 0, "token"))


async def status(url: str) -> None:
    await ask_agent(url, lambda agent_client, at: agent_client.status(at))


async def chat(url: str) -> None:
    await ask_agent(url, lambda agent_client, at: agent_client.chat(at, {}))


async def config_of_agent(url: str) -> None:
    await ask_agent(url, lambda agent_client, at: agent_client.get_config(at))


async def control_plane(url: str) -> None:
    client = ControlPlane(url)
    try:
        await client.newest_config("key", m.ConfigRequest(boot_id=UUID(int=1), config_version=1))
    finally:
        await client.aclose()


async def model(url: str) -> None:
    await ask_endpoint(url, [])


async def embedding(url: str) -> None:
    client = ModelClient()
    try:
        await embed(client, EmbeddingCall(base_url=url, api_key=None, model="m", texts=["Hello"], timeout_s=PATIENCE_S))
    finally:
        await client.aclose()


async def telegram(url: str) -> None:
    api = TelegramApi(token=TOKEN, base_url=url)
    try:
        await api.updates(None, wait_s=0)
    finally:
        await api.aclose()


async def provider(url: str) -> None:
    http = HetznerHttp(url, "token", timeout_s=PATIENCE_S)
    try:
        await http.get("servers/1", ONE_SERVER)
    finally:
        await http.aclose()


async def order_at_provider(url: str) -> None:
    http = HetznerHttp(url, "token", timeout_s=PATIENCE_S)
    try:
        await http.change("POST", "servers", ONE_SERVER, {})
    finally:
        await http.aclose()


@pytest.mark.parametrize(
    ("ask", "http_status", "error"),
    [
        (status, 200, AgentBadAnswer),
        (status, 500, AgentBadAnswer),
        (chat, 200, AgentBadAnswer),
        (config_of_agent, 200, AgentBadAnswer),
        (control_plane, 200, BadAnswer),
        (control_plane, 409, Conflict),
        (model, 200, ModelCallFailed),
        (embedding, 200, ModelCallFailed),
        (telegram, 200, TelegramUnavailable),
        (telegram, 429, TelegramBusy),
        (provider, 200, ProviderRetry),
        (provider, 502, ProviderRetry),
        (order_at_provider, 201, ProviderOutcomeUnknown),
    ],
)
async def test_a_deeply_nested_json_answer_raises_the_client_s_own_error(
    ask: Callable[[str], Awaitable[None]], http_status: int, error: type[Exception]
) -> None:
    head = f"HTTP/1.1 {http_status} x\r\nContent-Length: {len(NESTED)}\r\nConnection: close\r\n\r\n".encode()

    async with raw_endpoint(head, NESTED, stays_open=True) as endpoint:
        with pytest.raises(error):
            await ask(endpoint.base_url)


async def test_modelsim_answers_400_to_a_deeply_nested_request(modelsim: ModelSim) -> None:
    for path in ("/v1/chat/completions", "/v1/embeddings", "/_sim/faults"):
        answer = await modelsim.http.post(path, content=NESTED)

        assert answer.status_code == 400, path
        assert json.loads(answer.content)["error"], path
