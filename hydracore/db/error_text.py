"""Joins the lines of error texts, of libpq, the server and its programs, into one line for terminals and logs."""

from __future__ import annotations

import re
from typing import Final

#: A line that ends with one of these is joined to the next by a blank, any other by a semicolon.
_SENTENCE_ENDS: Final = (".", ":", ";", "?", "!", ",")

#: A part of a statement, with a `^` below the place that the message is about.
_EXCERPT: Final = re.compile(r"^LINE \d+: .*\n *\^", re.MULTILINE)


def one_line(error: object) -> str:
    """`str(error)` in one line, without excerpts of statements.

    The server adds one even where it ends a session that waits for a lock, as if the statement were wrong.
    """
    joined = ""
    for line in _EXCERPT.sub("", str(error)).splitlines():
        text = " ".join(line.split())
        if text:
            joined += f"{_separator_after(joined)}{text}"
    return joined


def _separator_after(joined: str) -> str:
    if not joined:
        return ""
    return " " if joined.endswith(_SENTENCE_ENDS) else "; "
