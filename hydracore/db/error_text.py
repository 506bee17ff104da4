"""Joins the lines of error texts, of libpq, the server and its programs, into one line for terminals and logs."""

from __future__ import annotations

from typing import Final

#: A line that ends with one of these is joined to the next by a blank, any other by a semicolon.
_SENTENCE_ENDS: Final = (".", ":", ";", "?", "!", ",")


def one_line(error: object) -> str:
    """`str(error)` in one line, without the `^` that points at a place in the line above it."""
    joined = ""
    for line in str(error).splitlines():
        text = " ".join(line.split())
        if text not in ("", "^"):
            joined += f"{_separator_after(joined)}{text}"
    return joined


def _separator_after(joined: str) -> str:
    if not joined:
        return ""
    return " " if joined.endswith(_SENTENCE_ENDS) else "; "
