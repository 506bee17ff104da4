"""The agent's sign of life. Telemetry, not history: a heartbeat that does not get through is not sent later."""

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
from hydracore.agent.errors import DiskRefuses
from hydracore.agent.messages import Heartbeat

_log = structlog.get_logger(__name__)


async def beat(
    credentials: Credentials,
    control_plane: ControlPlane,
    content: Callable[[], Heartbeat],
    *,
    on_wanted: Callable[[int], None],
    rand: Callable[[], float] = random.random,
) -> NoReturn:
    """Send `content()` now and at every interval. After a failure sooner, with backoff, so that an outage is over for
    this agent soon after it is over. `on_wanted` is told each time which configuration ought to run. Raises `Gone`.

    The secrets say what the interval was when they were issued, each answer what it is now: that is what silence is judged by.

    At a new agent the control plane looks for itself, so its first comes at some moment of the first interval, by `rand` (a
    float in [0, 1)): agents that were made together do not report together for ever. One that was away may be missed already.
    """
    interval_s = credentials.current.heartbeat_interval_s
    if credentials.is_new:
        await asyncio.sleep(rand() * interval_s)
    backoff = Backoff(base_s=RETRY_BASE_S, cap_s=RETRY_CAP_S)
    while True:
        try:
            reply = await credentials.call(lambda key: control_plane.heartbeat(key, content()))
        except (Unavailable, BadAnswer, Conflict, DiskRefuses) as error:
            wait_s = min(interval_s, retry_wait_s(error, backoff))
            _log.warning("heartbeat_failed", what=error.what, wait_s=round(wait_s, 2))
        else:
            backoff.reset()
            on_wanted(reply.config_version)
            told_s = reply.heartbeat_interval_s
            wait_s = interval_s = credentials.current.heartbeat_interval_s if told_s is None else told_s
        await asyncio.sleep(wait_s)
