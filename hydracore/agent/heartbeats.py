"""Heartbeats, the agent's sign of life. They are telemetry and no history: one that fails is not sent again."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from typing import NoReturn

import structlog

from hydracore.agent.backoff import Backoff
from hydracore.agent.control_plane import (
    RETRY_BASE_S,
    RETRY_CAP_S,
    BadAnswer,
    Conflict,
    ControlPlane,
    Unavailable,
    retry_wait_s,
)
from hydracore.agent.credentials import Credentials
from hydracore.agent.errors import DiskWriteFailed
from hydracore.agent.messages import Heartbeat

_log = structlog.get_logger(__name__)


async def send_heartbeats(
    credentials: Credentials,
    control_plane: ControlPlane,
    make_heartbeat: Callable[[], Heartbeat],
    *,
    on_wanted_version: Callable[[int], None],
    rand: Callable[[], float] = random.random,
) -> NoReturn:
    """Send `make_heartbeat()` now and at every interval. Raises `Gone`.

    After a failure the next one comes earlier, with backoff, so that the agent reports soon after an
    outage. `on_wanted_version` gets from each answer the configuration version that ought to run.

    The first interval is the one in the secrets, which may be old; then the latest answer's counts,
    as the control plane judges silence by it.

    A new agent sends its first heartbeat at a random moment of the first interval (`rand` returns a float
    in [0, 1)), so that agents that were created together do not report together for ever; the control plane
    checks a new agent by itself. An agent that was away reports at once, as it may be missed already.
    """
    interval_s = credentials.current.heartbeat_interval_s
    if credentials.is_new:
        await asyncio.sleep(rand() * interval_s)
    backoff = Backoff(base_s=RETRY_BASE_S, cap_s=RETRY_CAP_S)
    while True:
        try:
            reply = await credentials.call_with_key(lambda key: control_plane.heartbeat(key, make_heartbeat()))
        except (Unavailable, BadAnswer, Conflict, DiskWriteFailed) as error:
            wait_s = min(interval_s, retry_wait_s(error, backoff))
            _log.warning("heartbeat_failed", what=error.what, wait_s=round(wait_s, 2))
        else:
            backoff.reset()
            on_wanted_version(reply.config_version)
            new_interval_s = reply.heartbeat_interval_s
            wait_s = interval_s = credentials.current.heartbeat_interval_s if new_interval_s is None else new_interval_s
        await asyncio.sleep(wait_s)
