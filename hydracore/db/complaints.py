"""Joins the lines of error texts, of libpq, the server and its programs, into one line for terminals and logs."""

from __future__ import annotations

from typing import Final

#: A line that ends with one of these is joined to the next by a blank, any other by a semicolon.
_ENDS: Final = (".", ":", ";", "?", "!", ",")


def one_line(complaint: object) -> str:
    """`str(complaint)` in one line, without the `^` that points at a place in the line above it."""
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
