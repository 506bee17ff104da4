"""The report of a rebuild, a dry run or a rollback."""

from __future__ import annotations

import msgspec

from projections.drift import Drift


class Report(msgspec.Struct, kw_only=True):
    """What a rebuild did.

    - `generation_before`: the generation that was live at the start; after a swap it is kept for a rollback.
    - `rows_compared`, `drifted`: how many rows were compared at the same position in the log, and how many differ.
      `drift`: the first of those.
    - `left_out`: the tables that could not be compared, because this version identifies their rows by other columns
      than the live one.
    - `missing`: what the live generation lacked, in words.
    - `swapped`: whether the generation is live now.
    - `stopped_s`: how long the swap held up writers (for a followed projection: its followers); None where nothing was
      swapped.
    - `rested_s`: how long it rested while others wrote, without the rests of the fold.
    """

    name: str
    version: int
    version_before: int | None
    generation: int
    generation_before: int | None
    resumed: bool
    events: int
    fold_s: float = 0.0
    index_s: float = 0.0
    compare_s: float = 0.0
    rows_compared: int = 0
    drifted: int = 0
    drift: list[Drift] = []
    left_out: list[str] = []
    missing: list[str] = []
    swapped: bool = False
    stopped_s: float | None = None
    tries: int = 0
    rested_s: float = 0.0
    total_s: float = 0.0
