"""What libpq, the server and its programs complain of goes on for lines; whoever works at a terminal, or reads a log, has one."""

from __future__ import annotations

from typing import Final

#: Behind these a line has come to an end of its own.
_ENDS: Final = (".", ":", ";", "?", "!", ",")


def one_line(complaint: object) -> str:
    """`str(complaint)` in a line that can be read as such. The mark below a statement's text would point nowhere there."""
    said = ""
    for line in str(complaint).splitlines():
        text = " ".join(line.split())
        if text not in ("", "^"):
            said += f"{_between(said)}{text}"
    return said


def _between(said: str) -> str:
    if not said:
        return ""
    return " " if said.endswith(_ENDS) else "; "
