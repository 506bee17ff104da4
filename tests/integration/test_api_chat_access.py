"""Who may chat with an instance, in which conversation, and when."""

import pytest

from tests.api_server import Api
from tests.chatting import HELLO
from tests.instance_fixtures import (
    RunningInstance,
    execute_commands,
    request_instance,
    running_instance,
    shared_api_fixture,
    shared_instance_fixture,
)
from tests.lifecycle import delete

__all__ = ["shared_api_fixture", "shared_instance_fixture"]

pytestmark = pytest.mark.asyncio(loop_scope="module")


async def test_a_chat_with_an_instance_that_is_not_running_is_a_409(api: Api) -> None:
    instance_id = await request_instance(api)
    pending = await api.client.post(f"/v1/instances/{instance_id}/chat", json=HELLO, headers=api.token())
    await execute_commands(api, instance_id, delete())
    deleting = await api.client.post(f"/v1/instances/{instance_id}/chat", json=HELLO, headers=api.token())

    assert (pending.status_code, deleting.status_code) == (409, 409)
    assert "pending" in pending.json()["detail"]


async def test_staff_may_chat_and_other_customers_and_tenants_may_not(instance: RunningInstance) -> None:
    api = instance.api
    answers = {
        name: await instance.ask("POST", "/chat", HELLO, headers=headers)
        for name, headers in {
            "admin": api.token(user="root", role="admin"),
            "platform": api.token(tenant="ours", user="ops", role="platform"),
            "other_customer": api.token(user="bob"),
            "other_tenant": api.token(tenant="rival"),
            "nobody": {"Authorization": "Bearer nonsense"},
        }.items()
    }

    assert {name: answer.status_code for name, answer in answers.items()} == {
        "admin": 200,
        "platform": 200,
        "other_customer": 403,
        "other_tenant": 404,
        "nobody": 401,
    }
    # Their usage is metered as theirs, and not as the owner's.
    assert [call.body["end_user"] for call in instance.agent.calls] == ["root", "ops"]


async def test_without_consent_staff_may_chat_only_in_conversations_of_their_own(instance: RunningInstance) -> None:
    admin, other = (instance.api.token(user=user, role="admin") for user in ("root", "toor"))

    await instance.ask("POST", "/chat", HELLO, headers=admin)
    theirs = instance.agent.calls[-1].body["conversation_id"]
    again = await instance.ask("POST", "/chat", {**HELLO, "conversation_id": theirs}, headers=admin)
    of_the_owner = await instance.ask("POST", "/chat", {**HELLO, "conversation_id": "c-1"}, headers=admin)
    of_another = await instance.ask("POST", "/chat", {**HELLO, "conversation_id": theirs}, headers=other)

    assert theirs.startswith("staff:")
    assert (again.status_code, of_the_owner.status_code, of_another.status_code) == (200, 403, 403)
    assert len(instance.agent.calls) == 2


async def test_with_consent_staff_may_join_a_conversation_of_the_owner_and_it_is_recorded(
    instance: RunningInstance,
) -> None:
    await instance.ask("PATCH", "/consent", {"consent_debug_access": True})
    before = await instance.version()

    answer = await instance.ask(
        "POST",
        "/chat",
        {**HELLO, "conversation_id": "c-1"},
        headers=instance.api.token(user="root", role="admin"),
    )

    assert answer.status_code == 200
    assert await instance.version() == before + 1


async def test_a_repeated_first_message_of_staff_goes_to_the_same_conversation(instance: RunningInstance) -> None:
    admin = {**instance.api.token(user="root", role="admin"), "Idempotency-Key": "k"}

    for _ in range(2):
        await instance.ask("POST", "/chat", HELLO, headers=admin)

    first, second = instance.agent.calls
    assert first.body == second.body


async def test_a_chat_with_another_tenant_s_instance_is_answered_as_if_it_were_absent(api: Api) -> None:
    async with running_instance(api) as instance:
        answer = await instance.ask("POST", "/chat", HELLO, headers=api.token(tenant="rival", role="admin"))

    absent = await api.client.post(
        f"/v1/instances/{'0' * 8}-0000-4000-8000-{'0' * 12}/chat", json=HELLO, headers=api.token()
    )
    assert (answer.status_code, answer.content) == (404, absent.content)
