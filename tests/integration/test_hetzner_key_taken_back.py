"""An operator who takes their SSH key out of the settings has it on no server that is made from then on."""

from tests.cloudsim_fixtures import TOKEN, CloudsimProcess
from tests.strays import stray
from workers.providers.hetzner import HetznerProvider


async def test_a_key_that_was_taken_back_goes_to_no_new_server(
    cloudsim: CloudsimProcess, driver: HetznerProvider
) -> None:
    await stray(driver)
    (operators,) = cloudsim.call("GET", "/v1/ssh_keys")["ssh_keys"]
    keyless = HetznerProvider(cloudsim.endpoint, TOKEN, timeout_s=5, ssh_public_key=None, ssh_key_name="hydracore")

    await stray(keyless)
    # Where it still went to servers, the provider would miss it now.
    cloudsim.call("DELETE", f"/v1/ssh_keys/{operators['id']}")
    await stray(keyless)

    assert [key["name"] for key in cloudsim.call("GET", "/v1/ssh_keys")["ssh_keys"]] == ["throwaway@hydracore"]
    await keyless.aclose()
