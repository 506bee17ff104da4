"""How often a process looks for garbage that refers to itself."""

from __future__ import annotations

import gc
from typing import Final

#: Objects made between two looks at the young ones. Python's own 700 is for scripts: a request here makes thousands, nearly all
#: of which are gone by their reference counts, and looking for the others took a fifth of all CPU time.
YOUNG: Final = 20_000


def freeze_and_collect_less_often() -> None:
    """Call it once everything is imported and made: what there is now is never looked at again."""
    gc.collect()
    gc.freeze()
    collect_less_often()


def collect_less_often() -> None:
    """Call it before everything is imported: all of that stays, and looking at it over and over is a tenth of a start."""
    gc.set_threshold(YOUNG, *gc.get_threshold()[1:])
