"""The agent as a process: logs to stdout as JSON lines, ends on a signal, says by its exit code how it ended.

0  stopped by SIGTERM, SIGINT or SIGHUP, or retired by the control plane (now or before)
1  a bug or a broken disk; worth a restart
2  the boot file is missing or bad     3  another agent runs on this root     4  the state directory is damaged
"""

from __future__ import annotations

import logging
import sys
from pathlib import Path

import msgspec
import structlog
from structlog.typing import Processor

from hydracore.agent.agent import Agent
from hydracore.agent.errors import StartRefused
from hydracore.garbage import look_less_often
from hydracore.signals import run_until_signal

log = structlog.get_logger()


def run(*, root: Path) -> int:
    """Run the agent of `root` until it is stopped or retired. Returns the exit code."""
    _configure_logging()
    try:
        look_less_often()
        if not run_until_signal(Agent(root).run()):
            log.info("agent_stopped")
    except StartRefused as refusal:
        sys.stderr.write(f"hydracore agent: {refusal}\n")
        return refusal.exit_code
    except Exception:
        log.exception("agent_failed")
        return 1
    return 0


def _configure_logging() -> None:
    """One JSON object a line, from the agent and from the libraries it stands on alike."""
    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        # Plain tracebacks: the kind with local variables would print secrets.
        structlog.processors.format_exc_info,
    ]
    structlog.configure(
        processors=[*shared, structlog.processors.JSONRenderer(serializer=_to_json)],
        wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
        logger_factory=structlog.PrintLoggerFactory(),
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            processor=structlog.processors.JSONRenderer(serializer=_to_json), foreign_pre_chain=shared
        )
    )
    # Libraries speak up from warnings on; below that, httpx would print every request.
    logging.basicConfig(level=logging.WARNING, handlers=[handler])


def _to_json(record: object, **_: object) -> str:
    return msgspec.json.encode(record, enc_hook=repr).decode()
