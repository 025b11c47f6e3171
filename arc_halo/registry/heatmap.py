"""A picture of where two models differ: blocks down, parts across, the colour how far."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING

from arc_halo.errors import ConfigurationError
from arc_halo.registry.differing import Distance

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from arc_halo.registry.differing import TensorDistance

_BLOCK = re.compile(r"^(?P<stem>.*?\.?(?:layers?|h|blk|blocks?))\.(?P<number>[0-9]+)\.(?P<part>.+)$")
_DARKEST, _PALEST = (8, 48, 107), (222, 235, 247)


@dataclass(frozen=True, slots=True)
class HeatMap:
    """Relative L2 distance of each part of each block; None where there is no such part, or it did not change."""

    rows: list[str]
    columns: list[str]
    cells: list[list[float | None]]

    def range(self) -> tuple[float, float]:
        """The least and the greatest distance, as powers of ten, never the same."""
        logs = [math.log10(cell) for row in self.cells for cell in row if cell and math.isfinite(cell)]
        low, high = min(logs, default=-1.0), max(logs, default=0.0)
        return (low, high) if high - low > 0.1 else (low - 1, high)  # noqa: PLR2004  one colour would say nothing

    def to_html(self, title: str) -> str:
        """A page of its own, without scripts; the number of each cell is in it."""
        low, high = self.range()
        head = "".join(f"<th><span>{escape(column)}</span></th>" for column in self.columns)
        body = "".join(
            f"<tr><th>{escape(name)}</th>{''.join(_cell(cell, low, high) for cell in row)}</tr>"
            for name, row in zip(self.rows, self.cells, strict=True)
        )
        return _PAGE.format(title=escape(title), head=head, body=body)

    def save_png(self, path: Path, title: str) -> None:
        """Write it by matplotlib.

        Raises
        ------
        ConfigurationError
            matplotlib is not installed.
        """
        try:
            from matplotlib.figure import Figure  # noqa: PLC0415  an extra
        except ImportError as error:
            raise ConfigurationError("pictures are drawn by matplotlib: pip install 'arc-halo[plot]'") from error
        low, high = self.range()
        figure = Figure(figsize=(2.5 + 0.55 * len(self.columns), 2.0 + 0.32 * len(self.rows)), layout="constrained")
        axes = figure.subplots()
        grid = [[math.log10(cell) if cell and math.isfinite(cell) else math.nan for cell in row] for row in self.cells]
        image = axes.imshow(grid, aspect="auto", cmap="Blues", vmin=low, vmax=high)
        axes.set_xticks(range(len(self.columns)), self.columns, rotation=60, ha="right", rotation_mode="anchor")
        axes.set_yticks(range(len(self.rows)), self.rows)
        axes.tick_params(length=0)
        axes.set_title(title)
        figure.colorbar(image, ax=axes, label="relative L2 distance, log10")
        figure.savefig(path, dpi=150)


def heat_map(distances: Sequence[TensorDistance]) -> HeatMap:
    """Arrange tensors by block and part; what is in no block is a row of its own."""
    cells: dict[tuple[str, str], Distance] = {}
    for each in distances:
        matched = _BLOCK.match(each.name)
        row, column = (f"block {int(matched['number'])}", matched["part"]) if matched else _outside(each.name)
        cells.setdefault((row, column.removesuffix(".weight")), Distance()).add(each.distance)
    rows, columns = (list(dict.fromkeys(key[place] for key in cells)) for place in (0, 1))
    grid = [[_value(cells.get((row, column))) for column in columns] for row in rows]
    return HeatMap(rows, columns, grid)


def _outside(name: str) -> tuple[str, str]:
    stem, _, part = name.removesuffix(".weight").rpartition(".")
    return stem or "model", part


def _value(distance: Distance | None) -> float | None:
    return None if distance is None else distance.relative_l2


def _cell(value: float | None, low: float, high: float) -> str:
    if value is None:
        return "<td></td>"
    share = (math.log10(value) - low) / (high - low) if value and math.isfinite(value) else float(value > 0)
    red, green, blue = (round(p + (d - p) * share) for p, d in zip(_PALEST, _DARKEST, strict=True))
    ink = "#fff" if share > 0.5 else "#111"  # noqa: PLR2004  half way
    return f'<td style="background:rgb({red},{green},{blue});color:{ink}">{value:.1e}</td>'


_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{title}</title><style>
:root {{ color-scheme: light dark }}
body {{ font: 14px system-ui, sans-serif; margin: 2rem }}
table {{ border-collapse: collapse }}
td {{ padding: .25rem .5rem; text-align: right; font-variant-numeric: tabular-nums; border: 1px solid #8884 }}
th {{ font-weight: 500; text-align: right; padding: .25rem .5rem; white-space: nowrap }}
thead th span {{ writing-mode: vertical-rl; transform: rotate(180deg) }}
</style></head><body><h1>{title}</h1><p>Relative L2 distance of the weights: dark is far. Empty: equal.</p>
<table><thead><tr><th></th>{head}</tr></thead><tbody>{body}</tbody></table></body></html>
"""
