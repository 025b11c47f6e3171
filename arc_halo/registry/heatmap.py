"""A picture of where two models differ: layers down, modules across, the colour how far."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING, Any, Final

from arc_halo.errors import ConfigurationError
from arc_halo.registry.differing import Distance

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from arc_halo.registry.differing import TensorDistance

WHOLE: Final = "whole"
"""The column of a row as one: all of a block, or a module that is in no block."""
_BLOCK = re.compile(r"^(?P<stack>(?:.*?\.)?(?:layers?|h|blk|blocks?))\.(?P<number>[0-9]+)\.(?P<module>.+)$")
_EXPERT = re.compile(r"(?<=\.)[0-9]+(?=\.)")
# Viridis (van der Walt and Smith, 2015): one order of brightness, with and without a colour vision deficiency.
_STOPS: Final = (
    (68, 1, 84), (72, 40, 120), (62, 73, 137), (49, 104, 142), (38, 130, 142),
    (31, 158, 137), (53, 183, 121), (110, 206, 88), (181, 222, 43), (253, 231, 37),
)  # fmt: skip
_EQUAL, _UNSOUND, _INK, _PAPER = "#e9ecef", "#d55e00", "#111", "#fff"
_KEY: Final = "grey: equal; empty: no such module; ∞: was zero; framed, with !: some elements are NaN or infinite"
_FULL_HEIGHT: Final = 40
"""Rows that a picture has room to number each cell of."""


@dataclass(frozen=True, slots=True)
class HeatMap:
    """Distance of each module of each block; None where there is no such module."""

    title: str
    rows: list[str]
    columns: list[str]
    cells: list[list[Distance | None]]

    def bounds(self) -> tuple[int, int]:
        """Whole powers of ten around the relative distances that are neither zero nor infinite."""
        logs = [math.log10(cell.relative_l2) for row in self.cells for cell in row if cell and _is_on_scale(cell)]
        low, high = math.floor(min(logs, default=-1.0)), math.ceil(max(logs, default=0.0))
        return low, max(high, low + 1)

    def to_html(self) -> str:
        """A page of its own, without scripts."""
        return _PAGE.format(title=escape(self.title), body=self.to_html_fragment())

    def to_html_fragment(self) -> str:
        """The picture alone, styled in its elements: notebooks and mail strip style sheets."""
        bounds = self.bounds()
        head = "".join(
            f'<th style="{_ACROSS}"><span style="{_UPRIGHT}">{escape(each)}</span></th>' for each in self.columns
        )
        body = "".join(
            f'<tr><th style="{_DOWN}">{escape(name)}</th>{self._html_cells(name, row, bounds)}</tr>'
            for name, row in zip(self.rows, self.cells, strict=True)
        )
        return _FRAGMENT.format(
            title=escape(self.title), legend=_html_legend(bounds), equal=_swatch(_EQUAL), head=head, body=body
        )

    def _html_cells(self, name: str, row: list[Distance | None], bounds: tuple[int, int]) -> str:
        named = zip(self.columns, row, strict=True)
        return "".join(_html_cell(f"{name}, {column}", cell, bounds) for column, cell in named)

    def save_png(self, path: Path) -> None:
        """Write it by matplotlib.

        Raises
        ------
        ConfigurationError
            matplotlib is not installed.
        """
        try:
            from matplotlib.colors import LinearSegmentedColormap  # noqa: PLC0415  an extra
            from matplotlib.figure import Figure  # noqa: PLC0415  as above
        except ImportError as error:
            raise ConfigurationError("pictures are drawn by matplotlib: pip install 'arc-halo[plot]'") from error
        low, high = self.bounds()
        height = 0.3 if len(self.rows) <= _FULL_HEIGHT else 0.19
        figure = Figure(figsize=(3.6 + 0.62 * len(self.columns), 2.4 + height * len(self.rows)), layout="constrained")
        axes = figure.subplots()
        shades = [[_png_shade(cell, (low, high)) for cell in row] for row in self.cells]
        colours = LinearSegmentedColormap.from_list("viridis", [_rgb(each) for each in _STOPS])
        image = axes.imshow(shades or [[math.nan]], aspect="auto", cmap=colours, vmin=low, vmax=high)
        self._mark_png(axes, (low, high))
        axes.set_xticks(range(len(self.columns)), self.columns, rotation=50, ha="right", rotation_mode="anchor")
        axes.set_yticks(range(len(self.rows)), self.rows)
        axes.tick_params(length=0, labelsize=9 if len(self.rows) <= _FULL_HEIGHT else 7)
        axes.set_xticks([each - 0.5 for each in range(1, len(self.columns))], minor=True)
        axes.set_yticks([each - 0.5 for each in range(1, len(self.rows))], minor=True)
        axes.grid(which="minor", color=_PAPER, linewidth=1)
        axes.tick_params(which="minor", length=0)
        axes.spines[:].set_visible(False)
        axes.set_title(f"{self.title}\n{_KEY}", fontsize=9)
        bar = figure.colorbar(image, ax=axes, shrink=min(1.0, 12 / max(len(self.rows), 1)), aspect=16)
        bar.set_ticks(range(low, high + 1), labels=[f"$10^{{{power}}}$" for power in range(low, high + 1)])
        bar.set_label("L2 distance in units of the first one's norm")
        figure.savefig(path, dpi=150)

    def _mark_png(self, axes: Any, bounds: tuple[int, int]) -> None:
        """Equal cells are grey; cells say their number where there is room, and always where it is not finite."""
        for down, row in enumerate(self.cells):
            for across, cell in enumerate(row):
                if cell is None:
                    continue
                if not cell.changed or cell.unsound:
                    axes.add_patch(_png_frame(cell, across, down))
                if len(self.rows) <= _FULL_HEIGHT or cell.unsound:
                    ink = _INK if not cell.changed else _ink(_colour(cell, bounds))
                    axes.text(across, down, _label(cell), ha="center", va="center", fontsize=7, color=ink)


def heat_map(distances: Iterable[TensorDistance], title: str) -> HeatMap:
    """Arrange tensors by block and module, weights with their biases; experts of a block stand together."""
    cells: dict[tuple[str, str], Distance] = {}
    stacks = {matched["stack"] for each in distances if (matched := _BLOCK.match(each.name))}
    for each in distances:
        if not each.is_float:
            continue
        row, column = _place(each.name, is_one_stack=len(stacks) <= 1)
        for place in {(row, WHOLE), (row, column)}:
            cells.setdefault(place, Distance()).add(each.distance)
    rows = list(dict.fromkeys(row for row, _ in cells))
    columns = sorted(dict.fromkeys(column for _, column in cells), key=lambda column: column != WHOLE)
    return HeatMap(title, rows, columns, [[cells.get((row, column)) for column in columns] for row in rows])


def _place(name: str, *, is_one_stack: bool) -> tuple[str, str]:
    """Row and column of a tensor; stacks are told apart where there are several, as encoder and decoder."""
    matched = _BLOCK.match(name)
    if matched is None:
        return _module(name), WHOLE
    number = int(matched["number"])
    row = f"block {number}" if is_one_stack else f"{matched['stack']}.{number}"
    return row, _EXPERT.sub("*", _module(matched["module"]))


def _module(name: str) -> str:
    return name.rpartition(".")[0] or name


def _is_on_scale(distance: Distance) -> bool:
    return distance.difference > 0 and 0 < distance.relative_l2 < math.inf


def _label(cell: Distance) -> str:
    number = "0" if not cell.difference else "∞" if math.isinf(cell.relative_l2) else f"{cell.relative_l2:.0e}"
    short = number.replace("e-0", "e-").replace("e+0", "e")
    return f"{short} !" if cell.unsound else short


def _share(cell: Distance, bounds: tuple[int, int]) -> float:
    """Where between the ends of the scale it lies, from 0 to 1."""
    low, high = bounds
    if not _is_on_scale(cell):
        return float(cell.relative_l2 > 0)
    return (math.log10(cell.relative_l2) - low) / (high - low)


def _colour(cell: Distance, bounds: tuple[int, int]) -> tuple[int, int, int]:
    at = _share(cell, bounds) * (len(_STOPS) - 1)
    first = min(int(at), len(_STOPS) - 2)
    red, green, blue = (
        round(start + (stop - start) * (at - first))
        for start, stop in zip(_STOPS[first], _STOPS[first + 1], strict=True)
    )
    return red, green, blue


def _ink(colour: tuple[int, int, int]) -> str:
    red, green, blue = colour
    return _INK if 0.299 * red + 0.587 * green + 0.114 * blue > 125 else _PAPER  # noqa: PLR2004  brightness, ITU-R BT.601


def _rgb(colour: tuple[int, int, int]) -> str:
    return "#{:02x}{:02x}{:02x}".format(*colour)


def _png_shade(cell: Distance | None, bounds: tuple[int, int]) -> float:
    if cell is None or not cell.changed:
        return math.nan
    low, high = bounds
    return low + _share(cell, bounds) * (high - low)


def _png_frame(cell: Distance, across: int, down: int) -> Any:
    from matplotlib.patches import Rectangle  # noqa: PLC0415  an extra

    inside, frame = "none" if cell.changed else _EQUAL, _UNSOUND if cell.unsound else "none"
    return Rectangle((across - 0.48, down - 0.46), 0.96, 0.92, facecolor=inside, edgecolor=frame, linewidth=1.5)


def _html_cell(name: str, cell: Distance | None, bounds: tuple[int, int]) -> str:
    if cell is None:
        return f'<td style="{_CELL}"></td>'
    colour = _colour(cell, bounds)
    shade, ink = (_rgb(colour), _ink(colour)) if cell.changed else (_EQUAL, _INK)
    cosine = "" if cell.cosine is None else f", cosine {cell.cosine:.6f}"
    unsound = f", {cell.unsound:,} elements not finite" if cell.unsound else ""
    told = (
        f"{name}: L2 {cell.l2:.4g}, relative {cell.relative_l2:.4g}{cosine}, {cell.changed:,} of {cell.count:,} changed"
    )
    frame = f";outline:2px solid {_UNSOUND};outline-offset:-2px" if cell.unsound else ""
    style = f"{_CELL};background:{shade};color:{ink}{frame}"
    return f'<td style="{style}" title="{escape(told + unsound)}">{_label(cell)}</td>'


def _html_legend(bounds: tuple[int, int]) -> str:
    low, high = bounds
    ramp = ", ".join(_rgb(each) for each in _STOPS)
    powers = "".join(f"<span>10<sup>{power}</sup></span>" for power in range(low, high + 1))
    return (
        f'<span style="display:inline-block;width:16em;vertical-align:middle">'
        f'<span style="display:block;height:.9em;background:linear-gradient(to right, {ramp})"></span>'
        f'<span style="display:flex;justify-content:space-between;font-size:85%">{powers}</span></span>'
    )


def _swatch(colour: str) -> str:
    return (
        f'<span style="display:inline-block;width:1em;height:.9em;background:{colour};border:1px solid #adb5bd"></span>'
    )


_CELL = "padding:.2em .45em;text-align:right;font-variant-numeric:tabular-nums;border:1px solid #fff;white-space:nowrap"
_DOWN = "font-weight:500;text-align:right;padding:.2em .6em;white-space:nowrap"
_ACROSS = "font-weight:500;vertical-align:bottom;text-align:left;padding:.2em .45em"
_UPRIGHT = "writing-mode:vertical-rl;transform:rotate(180deg);white-space:nowrap"
_FRAGMENT = """<div style="overflow-x:auto;background:#fff;color:#111;padding:.5em"><b>{title}</b>
<p style="margin:.5em 0">Relative L2 distance: {legend} &ensp; {equal} equal &ensp; empty: no such module
&ensp; ∞: was zero &ensp; framed, with !: some elements are NaN or infinite</p>
<table style="border-collapse:collapse;font-size:90%"><thead><tr><th></th>{head}</tr></thead>
<tbody>{body}</tbody></table></div>"""
_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{title}</title><style>
body {{ font: 14px system-ui, sans-serif; margin: 1.5rem; background: #fff; color: #111 }}
</style></head><body>{body}</body></html>
"""
