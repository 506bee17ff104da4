"""What the supervisor keeps running: one command, described."""

import signal
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from dataclasses import dataclass, field
from typing import Any

from hydracore.embedded.account import Account

#: Whether a part serves; asked again and again until it does.
Ready = Callable[[], Awaitable[bool]]


async def nothing_to_prepare() -> None:
    """Most parts start as they are."""


@dataclass(frozen=True, kw_only=True)
class Part:
    """One program. `name` is unique and names the log file; `kind` is what `pids` calls it (two workers are one kind)."""

    name: str
    kind: str
    command: tuple[str, ...]
    environ: Mapping[str, str] = field(repr=False)
    #: Whom it runs as; `None` is us.
    account: Account | None = None
    cwd: str | None = None
    #: Asks it to end in order; sent to its main process alone.
    stop_signal: signal.Signals = signal.SIGTERM
    #: Run before every start, and cancelled where the part is to stop before that.
    prepare: Callable[[], Coroutine[Any, Any, None]] = nothing_to_prepare
    #: Whether it serves; a part that cannot be asked counts as ready once it has run for `settle_s`.
    ready: Ready | None = None
    settle_s: float = 0.0
