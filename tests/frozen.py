"""Histories that the first version wrote, from which whatever is made by rules of one number must always come out the same."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Final

import msgspec

from events.codec import decode
from events.types import AnyEvent

_CORPUS: Final = Path(__file__).parent / "corpus"


def histories() -> Iterator[list[AnyEvent]]:
    """Whole streams, of one instance each (`lives.instance_id`)."""
    for line in (_CORPUS / "histories-v1.jsonl").read_bytes().splitlines():
        yield list(map(decode, msgspec.json.decode(line, type=list[str])))


def events() -> list[AnyEvent]:
    """One of each type at least, that do not make a history."""
    return list(map(decode, (_CORPUS / "events-v1.jsonl").read_bytes().splitlines()))
