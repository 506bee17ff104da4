"""Helpers for chats through the API."""

import json
from typing import Any

from tests.instance_fixtures import RunningInstance

HELLO = {"message": "Hello"}
SSE = {"Accept": "text/event-stream"}
PING = b": ping\n\n"


async def stream_chat(instance: RunningInstance, **kwargs: Any) -> tuple[int, bytes]:
    answer = await instance.ask("POST", "/chat", HELLO, headers={**SSE, **kwargs.pop("headers", {})}, **kwargs)
    return answer.status_code, answer.content


def final_error(body: bytes) -> dict[str, Any]:
    """The data of the last event, which must be an error."""
    last = body.rstrip(b"\n").rpartition(b"\n\n")[2]
    name, _, data = last.partition(b"\n")
    assert name == b"event: error", body
    return json.loads(data.removeprefix(b"data: "))
