"""Made-up requests, good and bad, for every operation of the served document: the answers must be what it says."""

import asyncio
import json
import os
import sys
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from tests.api_server import every_operation
from tests.callers import open_callers
from tests.instance_fixtures import running_instance
from tests.services import Services

REPOSITORY = Path(__file__).parent.parent.parent
HOOKS = "tests.contract.made_up_requests"

#: For each operation, beside the hundred or so that its declaration suggests. The same ones in every run.
EXAMPLES = 5

#: Accepted is what pydantic's default mode accepts (0 for false, "5" for 5), because clients of the contract may rely
#: on that; refused is also what the contract leaves open and no server can take (an unknown region, a name of a megabyte).
#: Which requests are refused, and how, is pinned in `test_api_bad_requests.py`.
NOT_PROMISED = "negative_data_rejection,positive_data_acceptance"

#: An operation that ends an instance, or its agent's key, gets an instance of its own.
DEADLY = ("delete_instance", "rotate_key")

#: The caller of each operation. schemathesis takes the credentials away again to see that they are asked for.
CALLER_TYPES = """
headers = {{ Authorization = "{owner[Authorization]}" }}

[[operations]]
include-path-regex = "^/v1/agent/"
headers = {{ Authorization = "{agent[Authorization]}" }}

[[operations]]
include-operation-id = ["rotate_key", "clean_up"]
headers = {{ Authorization = "{admin[Authorization]}" }}
"""

OPTIONS = (
    "--phases=examples,coverage,fuzzing",
    f"--max-examples={EXAMPLES}",
    "--generation-deterministic",
    "--suppress-health-check=all",
    f"--exclude-checks={NOT_PROMISED}",
    "--continue-on-failure",
    "--request-timeout=20",
    "--warnings=off",
    "--no-color",
)


@pytest.mark.long
@pytest.mark.timeout(300)
async def test_every_answer_to_a_generated_request_conforms_to_the_served_document(
    services: Services, tmp_path: Path
) -> None:
    async with open_callers(services) as callers, AsyncExitStack() as stack:
        instances = {
            name: (await stack.enter_async_context(running_instance(callers.api))).instance_id for name in DEADLY
        }
        instances[""] = callers.instance.instance_id
        (tmp_path / "schemathesis.toml").write_text(CALLER_TYPES.format(**callers.headers))
        ours = {
            "PYTHONPATH": str(REPOSITORY),
            "SCHEMATHESIS_HOOKS": HOOKS,
            "HYDRACORE_TEST_INSTANCES": json.dumps(instances, default=str),
            # Where the tables of all characters are that were computed for other tests, or by an earlier run.
            "HYPOTHESIS_STORAGE_DIRECTORY": str(REPOSITORY / ".hypothesis"),
        }
        # A program of its own: made-up requests are made where they are needed, and not by every pytest that collects this.
        process = await asyncio.create_subprocess_exec(
            *(Path(sys.executable).with_name("schemathesis"), "run", *OPTIONS, f"{callers.api.url}/openapi.json"),
            cwd=tmp_path,
            env=os.environ | ours,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        try:
            output, _ = await process.communicate()
        finally:
            if process.returncode is None:
                process.kill()

    assert process.returncode == 0, output.decode()
    count = len(every_operation())
    assert f"{count} selected / {count} total" in output.decode()
