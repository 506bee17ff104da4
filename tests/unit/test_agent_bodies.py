"""The longest request of an agent is accepted: the agent would repeat it for ever, and send nothing that comes after it."""

from __future__ import annotations

from uuid import UUID

import msgspec
import pytest

from hydracore.agent import messages as m
from hydracore.agent.expressclaw.ledger import BATCH_ENTRIES_MAX
from hydracore.agent.spool import CALLBACKS_PER_REQUEST_MAX, MESSAGE_CHARS_MAX
from hydracore.api import agent_schemas as s
from tests.api_server import every_operation

#: A character that JSON writes in six bytes.
LONG = "\x01"

TOLD = m.CallbackEntry(stage="runtime_started", level="warning", message=LONG * MESSAGE_CHARS_MAX)
CALL = m.UsageEntry(
    at_ms=2**53,
    model=LONG * 200,
    prompt_tokens=2**63 - 1,
    completion_tokens=2**63 - 1,
    cost_usd="9" * 40,
    end_user=LONG * 256,
    channel="telegram",
    conversation_id="c" * 128,
)
LONGEST = {
    "/v1/agent/callback": (
        m.Callback(
            boot_id=UUID(int=1),
            seq=s.SEQ_MAX - CALLBACKS_PER_REQUEST_MAX,
            following=(TOLD,) * (CALLBACKS_PER_REQUEST_MAX - 1),
            **msgspec.structs.asdict(TOLD),
        ),
        s.Callback,
    ),
    "/v1/agent/usage": (
        m.UsageBatch(boot_id=UUID(int=1), ledger_id=UUID(int=2), seq=s.SEQ_MAX, entries=(CALL,) * BATCH_ENTRIES_MAX),
        s.UsageBatch,
    ),
}


@pytest.mark.parametrize("path", LONGEST)
def test_the_longest_request_of_an_agent_fits_the_limit_of_its_route(path: str) -> None:
    said, taken_as = LONGEST[path]
    (op,) = (op for op in every_operation() if op.declared.path == path)

    body = msgspec.json.encode(said)

    assert len(body) <= op.declared.body_bytes
    msgspec.json.decode(body, type=taken_as)
