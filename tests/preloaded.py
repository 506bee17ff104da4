"""Imports what test processes need, before they are forked. Modules that start threads must not be imported here."""

# ruff: noqa: E402, F401
import sys

# As parts do that run for long (`hydracore/cli/parts.py`): none of ours uses it, and Litestar would import it.
sys.modules["pydantic"] = None  # pyright: ignore[reportArgumentType] - see there

import anyio._backends._asyncio
import anyio.streams.tls
import litestar

import hydracore.agent.main
import hydracore.api.main
import hydracore.cli
import hydracore.cloudsim.main
import tests.chaos.logs_compared
import tests.forked
import workers.main
from hydracore.gc_tuning import freeze_and_collect_less_often
from hydracore.transport import new_client

# The first of each has a tenth of a second of modules imported that come with it.
litestar.Litestar([], openapi_config=None, logging_config=None)
new_client(tls=False, timeout_s=1)

# Each process looks for garbage once, in what it has made itself: not in all this, which looking would also have it copy.
freeze_and_collect_less_often()
