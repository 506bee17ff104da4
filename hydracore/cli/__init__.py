"""The `hydracore` command. Each sub-command imports its implementation only when it runs, so that all start fast."""

from hydracore.cli.root import main

__all__ = ["main"]
