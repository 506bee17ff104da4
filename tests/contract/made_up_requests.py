"""A hook of schemathesis (`SCHEMATHESIS_HOOKS`): made-up requests ask about something that there is."""

import json
import os
from typing import Any, Final
from uuid import UUID

import schemathesis

#: The instance to ask about, by the operation's name; under the empty one that of all others.
INSTANCES: Final[dict[str, str]] = json.loads(os.environ["HYDRACORE_TEST_INSTANCES"])


@schemathesis.hook
def before_call(context: object, case: Any, kwargs: dict[str, Any]) -> None:
    """What could be the id of an instance becomes that of one, because little can go wrong without."""
    if is_uuid(case.path_parameters.get("instance_id")):
        name = case.operation.definition.raw["operationId"]
        case.path_parameters["instance_id"] = INSTANCES.get(name, INSTANCES[""])


def is_uuid(text: object) -> bool:
    try:
        return bool(UUID(str(text)))
    except ValueError:
        return False
