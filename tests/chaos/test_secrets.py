"""No secret can be read where it must not: not in the database, not in any output, not at the provider."""

import httpx
import psycopg

from hydracore.auth import create_api_key
from tests.secrecy import assert_no_secret_leaked, assert_user_data_has_only_the_enrol_token
from tests.stack import TENANT, Stack


async def test_no_secret_appears_in_the_database_in_any_output_or_at_the_provider(stack: Stack) -> None:
    async with await psycopg.AsyncConnection.connect(stack.database_url, autocommit=True) as connection:
        api_key = await create_api_key(connection, tenant_id=TENANT, name="backend")
    key, instance_id = stack.new_key()
    # Errors make parts talk, and this one's text quotes the provider's token.
    stack.cloudsim.fault("create_server", "rate_limit", name=f"hc-{instance_id}", retry_after_s=0)
    stack.cloudsim.fault("delete_server", "locked", name=f"hc-{instance_id}")
    await stack.create(key)
    await stack.until_status(instance_id, "running")
    async with httpx.AsyncClient(base_url=stack.url, headers={"X-Api-Key": api_key}, trust_env=False) as backend:
        asked = await backend.get(f"/v1/instances/{instance_id}")
    assert asked.status_code == 200

    assert_user_data_has_only_the_enrol_token(stack, instance_id)
    await stack.delete(instance_id)
    await stack.until_status(instance_id, "deleted")
    stack.restart_worker()
    await stack.until_started(stack.worker)

    assert_no_secret_leaked(stack, api_key)
