"""The results of measurements, and the table that shows them."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Final

import msgspec
from rich.console import Console
from rich.table import Table

#: The width of the table in a file or a pipe: each row is one line.
WIDTH_WITHOUT_TERMINAL: Final = 240


class Comparison(msgspec.Struct, frozen=True, kw_only=True):
    """The medians of both sides, and their ratios in each round; a round measures both in turn."""

    name: str
    against: str
    ours: float
    theirs: float
    ratios: list[float]
    target: float

    @property
    def ratio(self) -> float:
        return self.ours / self.theirs

    @property
    def is_met(self) -> bool:
        return self.ratio >= self.target


class Limit(msgspec.Struct, frozen=True, kw_only=True):
    """A figure of ours with an upper bound, both in `unit`."""

    name: str
    value: float
    target: float
    unit: str

    @property
    def is_met(self) -> bool:
        return self.value <= self.target


def show(results: Sequence[Comparison | Limit]) -> None:
    """One table of everything that was measured."""
    table = Table(title="HydraCore, measured", title_justify="left")
    for heading in ("what", "ours", "other", "ratio (min-max)", "target", ""):
        table.add_column(heading)
    for result in results:
        met = "met" if result.is_met else "MISSED"
        if isinstance(result, Comparison):
            spread = f"{result.ratio:.1f}x ({min(result.ratios):.1f}-{max(result.ratios):.1f})"
            other = f"{result.theirs:,.0f}  {result.against}"
            table.add_row(result.name, f"{result.ours:,.0f}", other, spread, f">= {result.target:g}x", met)
        else:
            table.add_row(
                result.name, f"{result.value:.2f} {result.unit}", "", "", f"<= {result.target:g} {result.unit}", met
            )
    Console(width=None if sys.stdout.isatty() else WIDTH_WITHOUT_TERMINAL).print(table)
