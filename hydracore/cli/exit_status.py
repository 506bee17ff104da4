"""The meaning of exit statuses, the same for all commands. docs/operations.md has them as a table.

Besides these: 0 for done and all well; 2 for wrong usage, from click; 130 for `hydracore.signals.INTERRUPTED`.
"""

from typing import Final

#: The command did its work, and found that something is wrong or left to do.
FOUND: Final = 1
#: The command could not do its work.
NOT_DONE: Final = 3
#: Another process is doing the same work. Try again later.
BUSY: Final = 4
#: A lane of a read table is parked, and waits for an operator.
PARKED: Final = 5
#: What shells report for a program that SIGPIPE has ended.
BROKEN_PIPE: Final = 141
