"""The `hydracore` command. Each sub-command imports what it runs only when it is asked for, so that all start fast."""

from hydracore.cli.root import main

__all__ = ["main"]
