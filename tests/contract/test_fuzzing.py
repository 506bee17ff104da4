"""Made-up requests, good and bad, for every operation of the served document: the answers must be what it says."""

from collections.abc import AsyncGenerator, Generator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any, NamedTuple
from uuid import UUID

import pytest
import requests
import schemathesis
from anyio.from_thread import start_blocking_portal
from hypothesis import HealthCheck, Phase, settings
from schemathesis.specs.openapi import checks

from hydracore.api.openapi import document
from tests.api_server import every_operation
from tests.scene import Scene, open_scene
from tests.services import Services
from tests.use_fixtures import in_use

#: For each operation, beside the hundred or so that its declaration suggests. The same ones in every run.
EXAMPLES = 5

#: Accepted is what pydantic's default mode accepts (0 for false, "5" for 5), because clients of the contract may rely
#: on that; refused is also what the contract leaves open and no server can take (an unknown region, a name of a megabyte).
#: Which requests are refused, and how, is pinned in `test_api_bad_requests.py`.
NOT_PROMISED = [checks.negative_data_rejection, checks.positive_data_acceptance]

#: What ends an instance, or its agent's key, gets one of its own.
DEADLY = ("delete_instance", "rotate_key")

schema = schemathesis.openapi.from_dict(document(every_operation()))


class Served(NamedTuple):
    """A running API, for a test without an event loop. `instances`: what to ask about, where it is not ann's."""

    scene: Scene
    instances: dict[str, UUID]
    session: requests.Session


@asynccontextmanager
async def serving(services: Services) -> AsyncGenerator[Served]:
    async with open_scene(services) as scene, AsyncExitStack() as stack:
        instances = {name: (await stack.enter_async_context(in_use(scene.api))).instance_id for name in DEADLY}
        yield Served(scene, instances, stack.enter_context(requests.Session()))


@pytest.fixture(scope="module")
def served(services: Services) -> Generator[Served]:
    with start_blocking_portal() as portal, portal.wrap_async_context_manager(serving(services)) as running:
        yield running


def is_uuid(text: object) -> bool:
    try:
        return bool(UUID(str(text)))
    except ValueError:
        return False


@schema.parametrize()
@settings(
    max_examples=EXAMPLES,
    derandomize=True,
    deadline=None,
    database=None,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=list(HealthCheck),
)
def test_every_answer_is_as_the_document_says(case: Any, served: Served) -> None:
    declared = case.operation.definition.raw
    name = declared["operationId"]
    # What could be the id of an instance becomes that of one, because little can go wrong without.
    if is_uuid(case.path_parameters.get("instance_id")):
        case.path_parameters["instance_id"] = str(served.instances.get(name, served.scene.used.instance_id))
    if declared.get("security") == [{"agent_key": []}]:
        who = "agent"
    else:
        who = "admin" if name in {"rotate_key", "clean_up"} else "owner"

    case.call_and_validate(
        base_url=served.scene.api.url,
        session=served.session,
        headers=served.scene.headers[who],
        excluded_checks=NOT_PROMISED,
        timeout=20,
    )
