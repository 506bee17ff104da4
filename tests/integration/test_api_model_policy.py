"""Which models an agent uses, and where they are: changed field by field, and sent to the agent alone."""

from collections.abc import AsyncGenerator

import pytest
import pytest_asyncio

from tests.instance_fixtures import (
    RunningInstance,
    running_instance,
    shared_api,
    shared_api_fixture,
    shared_instance_fixture,
)
from tests.services import Services

__all__ = ["shared_api_fixture", "shared_instance_fixture"]

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(loop_scope="module")
async def model_urls(services: Services) -> AsyncGenerator[RunningInstance]:
    settings = {"model_base_url": "http://models.test/v1", "model_api_key": "sk-of-the-models"}
    async with shared_api(services, **settings) as api, running_instance(api) as instance:
        yield instance


async def test_the_models_address_and_key_go_to_the_agent_and_the_key_is_never_shown(
    model_urls: RunningInstance,
) -> None:
    answer = await model_urls.ask("POST", "/config", {"agent_name": "Ada"})

    assert model_urls.agent.runtime["model"] == {"base_url": "http://models.test/v1", "api_key": "sk-of-the-models"}
    assert model_urls.agent.runtime["telegram"]["base_url"] == "https://api.telegram.org"
    assert model_urls.agent.runtime["prices"]["gpt-4.1"] == {"input_usd_per_mtok": "2", "output_usd_per_mtok": "8"}
    for text in (answer.text, (await model_urls.ask("GET", "/config")).text):
        assert "sk-of" not in text


async def test_a_model_policy_is_changed_field_by_field(instance: RunningInstance) -> None:
    policy = {
        "primary": "gpt-4.1",
        "fallbacks": ["gpt-4o"],
        "temperature": 0,
        "max_tokens": 99,
        "embedding_model": None,
        "budget_daily_usd": 0.1,
        "budget_monthly_usd": 5,
    }
    first = await instance.ask("PATCH", "/model-policy", policy)
    second = await instance.ask("PATCH", "/model-policy", {"primary": None, "fallbacks": [], "budget_daily_usd": None})

    assert first.json()["model_policy"] == policy
    assert first.json()["message"] == "Model policy updated. The agent runs with it"
    assert (first.json()["config_version"], second.json()["config_version"]) == (2, 3)
    assert second.json()["model_policy"] == policy | {
        "primary": "gpt-4.1-mini",
        "fallbacks": [],
        "budget_daily_usd": None,
    }
    pushed = instance.agent.runtime["model_policy"]
    assert (pushed["budget_daily_usd"], pushed["budget_monthly_usd"], pushed["max_tokens"]) == (None, "5", 99)
    assert (await instance.ask("GET", "/config")).json()["model_policy"] == second.json()["model_policy"]


async def test_unknown_models_are_accepted_with_a_warning(instance: RunningInstance) -> None:
    answer = await instance.ask(
        "PATCH", "/model-policy", {"primary": "homegrown-1", "fallbacks": ["gpt-4o", "other-2"]}
    )

    assert answer.status_code == 200
    message = answer.json()["message"]
    assert "homegrown-1 is not in the catalogue: it is metered at the catalogue's highest prices" in message
    assert "other-2 is not in the catalogue" in message
    assert "gpt-4o is not" not in message
