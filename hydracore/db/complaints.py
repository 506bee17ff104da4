"""The error texts of libpq, of the server and of its programs in one line each, for terminals and logs: many have several."""

from __future__ import annotations

from typing import Final

#: Behind these a line has come to an end of its own.
_ENDS: Final = (".", ":", ";", "?", "!", ",")


def one_line(complaint: object) -> str:
    """`str(complaint)` in one line, without the `^` that marks a place in a statement: it would point nowhere there."""
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
