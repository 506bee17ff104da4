"""What an exit status says, whichever command it is of. docs/operations.md has the same as a table.

Beside these: 0 it is done, and all is well; 2 usage, which is click's; 130 `hydracore.signals.INTERRUPTED`.
"""

from typing import Final

#: Something is not as it must be, or is left to be done: what was looked at, and not the look, is at fault.
FOUND: Final = 1
#: The work could not be done, whatever is wrong or not with what it is about.
NOT_DONE: Final = 3
#: Somebody else is at it: later, it could be done.
BUSY: Final = 4
#: A read table waits at an event for somebody to see to it.
PARKED: Final = 5
#: Of a program that SIGPIPE ended, as shells have it.
NOBODY_READS: Final = 141
