"""Providers whose lists and answers lag behind what they have done."""

from tests.stack import Stack
from workers.providers.hetzner import HetznerProvider


async def test_a_server_that_its_provider_does_not_show_yet_is_deleted_with_its_instance(
    stack: Stack, provider: HetznerProvider
) -> None:
    instance_id = await stack.running()
    server_id = int(stack.logged_server_id(instance_id))
    # The server is neither listed nor found by its id.
    await provider.set_labels(str(server_id), {})
    stack.cloudsim.fault("get_server", "error", status=404, code="not_found", server_id=server_id, times=None)

    await stack.delete(instance_id)

    await stack.until_status(instance_id, "deleted")
    await stack.until(lambda: server_id not in {server["id"] for server in stack.cloudsim.servers()})
