"""An SSH key that an operator removes from the settings is on no server that is created afterwards."""

from tests.cloudsim_fixtures import TOKEN, CloudsimProcess
from tests.orphan_servers import create_orphan
from workers.providers.hetzner import HetznerProvider


async def test_an_ssh_key_removed_from_the_settings_is_on_no_new_server(
    cloudsim: CloudsimProcess, driver: HetznerProvider
) -> None:
    await create_orphan(driver)
    (operators,) = cloudsim.call("GET", "/v1/ssh_keys")["ssh_keys"]
    keyless = HetznerProvider(cloudsim.endpoint, TOKEN, timeout_s=5, ssh_public_key=None, ssh_key_name="hydracore")

    await create_orphan(keyless)
    # If it were still used for servers, the provider would now refuse a create.
    cloudsim.call("DELETE", f"/v1/ssh_keys/{operators['id']}")
    await create_orphan(keyless)

    assert [key["name"] for key in cloudsim.call("GET", "/v1/ssh_keys")["ssh_keys"]] == ["throwaway@hydracore"]
    await keyless.aclose()
