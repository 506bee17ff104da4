"""The `hydracore` command, which is `python -m hydracore` too."""

import os
import signal
from contextlib import suppress
from types import FrameType


def main() -> None:
    # Until the command is there to catch it, Ctrl-C would be a traceback out of the middle of an import, and the others no word.
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    for number, handler in before.items():
        if handler in (signal.default_int_handler, signal.SIG_DFL):
            signal.signal(number, _leave)
    from hydracore.cli import main as command  # noqa: PLC0415 - see above

    for number, handler in before.items():
        signal.signal(number, handler)
    command(prog_name="hydracore")


def _leave(_number: int, _frame: FrameType | None) -> None:
    """As the command does when it is interrupted (`hydracore/cli/root.py`); there is nothing to tidy up."""
    with suppress(OSError):
        os.write(2, b"hydracore: interrupted\n")
    os._exit(130)


if __name__ == "__main__":
    main()
