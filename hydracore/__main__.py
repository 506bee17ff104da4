"""The `hydracore` command, which is `python -m hydracore` too."""

import os
import signal
import sys
from contextlib import suppress
from types import FrameType
from typing import Final

from hydracore.gc_tuning import collect_less_often

#: The commands that run until a signal stops them. They exit with 0 then, even while they are starting.
PARTS: Final = frozenset({"api", "relay", "worker", "cloudsim", "modelsim", "agent"})


def main() -> None:
    # Until the command is imported and catches signals itself: Ctrl-C would otherwise print a traceback from the middle of an
    # import, and the other signals would end the process without a message.
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    for number, handler in before.items():
        if handler in (signal.default_int_handler, signal.SIG_DFL):
            signal.signal(number, _exit_on_signal)
    collect_less_often()
    from hydracore.cli import main as command  # noqa: PLC0415 - see above

    # `_exit_on_signal` stays set for the other signals, and for a part: both still import much, and nothing has to be cleaned up
    # before they set their own handlers.
    if not _is_part():
        signal.signal(signal.SIGINT, before[signal.SIGINT])
    command(prog_name="hydracore")


def _is_part() -> bool:
    return not PARTS.isdisjoint(sys.argv[1:2])


def _exit_on_signal(_number: int, _frame: FrameType | None) -> None:
    """Exit like an interrupted command (`hydracore/cli/root.py`) or a stopped part. There is nothing to clean up yet."""
    if _is_part():
        os._exit(0)
    with suppress(OSError):
        os.write(2, b"hydracore: interrupted\n")
    os._exit(130)


if __name__ == "__main__":
    main()
