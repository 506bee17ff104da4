"""The description of one program that the supervisor keeps running."""

import signal
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from dataclasses import dataclass, field
from typing import Any

from hydracore.embedded.account import Account

#: Returns whether a part serves. Called repeatedly until it does.
Ready = Callable[[], Awaitable[bool]]


async def nothing_to_prepare() -> None:
    """The preparation of most parts."""


@dataclass(frozen=True, kw_only=True)
class Part:
    """One program. `name` is unique and names the log file.

    Parts of the same `kind`, such as workers, are grouped in `pids`.
    """

    name: str
    kind: str
    command: tuple[str, ...]
    environ: Mapping[str, str] = field(repr=False)
    #: The account that it runs as; `None`: our own.
    account: Account | None = None
    cwd: str | None = None
    #: Asks it for an orderly end; sent to its main process only.
    stop_signal: signal.Signals = signal.SIGTERM
    #: Awaited before every start; cancelled when the part is stopped meanwhile.
    prepare: Callable[[], Coroutine[Any, Any, None]] = nothing_to_prepare
    #: Tells whether it serves. `None`: it cannot be asked, and counts as ready once it has run for `ready_after_s`.
    ready: Ready | None = None
    ready_after_s: float = 0.0
