"""Frozen histories that the first version wrote. Code of the same version number must always give the same result for them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Final

import msgspec

from events.codec import decode
from events.types import AnyEvent

_CORPUS: Final = Path(__file__).parent / "corpus"

#: How many lines of the corpus there were when the digests were made that are kept of what comes of them. Lines that were added since are
#: for those that are made next, when this is raised: what is frozen already does not change with a new type of event.
_HISTORIES: Final = 7
_EVENTS: Final = 40


def histories() -> Iterator[list[AnyEvent]]:
    """Whole streams, of one instance each (`lifecycle.instance_id`)."""
    for line in (_CORPUS / "histories-v1.jsonl").read_bytes().splitlines()[:_HISTORIES]:
        yield list(map(decode, msgspec.json.decode(line, type=list[str])))


def events() -> list[AnyEvent]:
    """One of each type at least, that do not make a history."""
    return list(map(decode, (_CORPUS / "events-v1.jsonl").read_bytes().splitlines()[:_EVENTS]))
