"""The `hydracore` command, which is `python -m hydracore` too."""

import signal


def main() -> None:
    # Until the command is there to catch it, Ctrl-C would be a traceback out of the middle of an import.
    handler = signal.getsignal(signal.SIGINT)
    if handler is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    from hydracore.cli import main as command  # noqa: PLC0415 - see above

    signal.signal(signal.SIGINT, handler)
    command(prog_name="hydracore")


if __name__ == "__main__":
    main()
