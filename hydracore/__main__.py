"""The `hydracore` command, which is `python -m hydracore` too."""

import os
import signal
import sys
from contextlib import suppress
from types import FrameType
from typing import Final

from hydracore.garbage import collect_less_often

#: What runs until it is told to stop, which is a good end also while it starts.
PARTS: Final = frozenset({"api", "relay", "worker", "cloudsim", "modelsim", "agent"})


def main() -> None:
    # Until the command is there to catch it, Ctrl-C would be a traceback out of the middle of an import, and the others no word.
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    for number, handler in before.items():
        if handler in (signal.default_int_handler, signal.SIG_DFL):
            signal.signal(number, _leave)
    collect_less_often()
    from hydracore.cli import main as command  # noqa: PLC0415 - see above

    # The others stay as they are: a command imports much more, and a part has something to tidy up only once it listens for itself.
    if not _is_part():
        signal.signal(signal.SIGINT, before[signal.SIGINT])
    command(prog_name="hydracore")


def _is_part() -> bool:
    return not PARTS.isdisjoint(sys.argv[1:2])


def _leave(_number: int, _frame: FrameType | None) -> None:
    """As the command does when it is interrupted (`hydracore/cli/root.py`), or a part when it is stopped; there is nothing to tidy up."""
    if _is_part():
        os._exit(0)
    with suppress(OSError):
        os.write(2, b"hydracore: interrupted\n")
    os._exit(130)


if __name__ == "__main__":
    main()
