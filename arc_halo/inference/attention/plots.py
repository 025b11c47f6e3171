"""Pictures of attention: one head with its tokens, and all heads by one of their figures."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from arc_halo.errors import ConfigurationError
from arc_halo.inference.attention.querying import head_figures
from arc_halo.registry.picture import Picture, new_figure

if TYPE_CHECKING:
    from collections.abc import Sequence

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from sqlalchemy.orm import Session

    from arc_halo.inference.attention.querying import HeadFigures, Sort, Source

_MOST_LABELS: Final = 64
"""Tokens that a picture has room to name each."""
_LABEL_LENGTH: Final = 16
_CELLS: Final[Any] = {"aspect": "equal", "cmap": "viridis", "interpolation": "nearest"}
FIGURES: Final[dict[str, str]] = {
    "entropy": "mean entropy, nats",
    "distance": "mean distance, tokens",
    "first": "attention on the first token",
    "previous": "attention on the token before",
    "induction": "attention behind an earlier place of the token",
}
_SHARES: Final = ("first", "previous", "induction")


@dataclass(frozen=True, slots=True)
class HeadPlot(Picture):
    """A heat map of one head: queries down, keys across."""

    matrix: np.ndarray = field(repr=False)
    labels: Sequence[str] | None = field(default=None, repr=False)
    title: str = "attention"

    @property
    def said(self) -> str:
        """Its title."""
        return self.title

    def figure(self) -> Figure:
        """A new figure of matplotlib; see `Picture.figure`."""
        figure, axes = _subplots((6.4, 5.6))
        image = axes.imshow(np.asarray(self.matrix, np.float32), vmin=0, vmax=1, **_CELLS)
        if self.labels is not None and len(self.labels) <= _MOST_LABELS:
            names = [_shown(each) for each in self.labels]
            axes.set_xticks(range(len(names)), names, rotation=90, fontsize=7)
            axes.set_yticks(range(len(names)), names, fontsize=7)
        axes.set_xlabel("key")
        axes.set_ylabel("query")
        axes.set_title(_literal(self.title), loc="left", fontsize=10)
        figure.colorbar(image, ax=axes, shrink=0.8).set_label("attention")
        return figure


@dataclass(frozen=True, slots=True)
class HeadGrid(Picture):
    """All heads by one of their figures: layers down, heads across; grey where it is not known."""

    heads: Sequence[HeadFigures] = field(repr=False)
    by: str = "entropy"
    title: str = "attention"

    @property
    def said(self) -> str:
        """Its title."""
        return self.title

    def figure(self) -> Figure:
        """A new figure of matplotlib; see `Picture.figure`."""
        rows, values = self._values()
        figure, axes = _subplots((2.4 + 0.45 * values.shape[1], 1.4 + 0.45 * values.shape[0]))
        axes.set_facecolor("#ced4da")
        bounds: Any = {"vmin": 0, "vmax": 1} if self.by in _SHARES else {"vmin": 0}
        image = axes.imshow(values, **bounds, **_CELLS)
        axes.set_xticks(range(values.shape[1]))
        axes.set_yticks(range(len(rows)), rows)
        axes.set_xlabel("head")
        axes.set_title(_literal(self.title), loc="left", fontsize=10)
        figure.colorbar(image, ax=axes, shrink=0.8).set_label(FIGURES[self.by])
        return figure

    def _values(self) -> tuple[list[str], np.ndarray]:
        paths = list(dict.fromkeys(each.layer_path for each in self.heads))
        across = max((each.head_index for each in self.heads), default=0) + 1
        values = np.full((max(len(paths), 1), across), math.nan)
        for each in self.heads:
            known = getattr(each, self.by)
            values[paths.index(each.layer_path), each.head_index] = math.nan if known is None else known
        indexes = {each.layer_path: each.layer_index for each in self.heads}
        # A block that attends twice, as a decoder's does, has no row of its number alone.
        is_plain = None not in indexes.values() and len(set(indexes.values())) == len(paths)
        return [str(indexes[path]) if is_plain else _literal(path) for path in paths], values


def plot_head(matrix: np.ndarray, labels: Sequence[str] | None = None, title: str = "attention") -> HeadPlot:
    """Draw one head.

    Parameters
    ----------
    matrix
        ``[queries, keys]``: of `load_attention`, or the strongest keys alone by `AttentionSummary.strongest`.
    labels
        Texts of the tokens; written where there are 64 or fewer.

    Raises
    ------
    ConfigurationError
        The matrix has other axes, or the labels are not as many.

    Examples
    --------
    >>> plot_head(load_attention(session, served, 0)["h.0.attn"][3], tokens)  # doctest: +SKIP
    """
    if matrix.ndim != 2 or (labels is not None and matrix.shape != (len(labels), len(labels))):  # noqa: PLR2004
        given = "no labels" if labels is None else f"{len(labels)} labels"
        raise ConfigurationError(
            f"a matrix of shape {list(matrix.shape)} with {given}; give [queries, keys] of one head"
        )
    return HeadPlot(matrix, labels, title)


def plot_heads(session: Session, source: Source, by: Sort = "entropy", *, title: str | None = None) -> HeadGrid:
    """Draw all heads of a model or an inference session, by a figure averaged over its requests.

    Parameters
    ----------
    by
        ``entropy``, ``distance``, ``first``, ``previous`` or ``induction``.

    Raises
    ------
    NotFound
        There is no such model or inference session.
    ConfigurationError
        There is no such figure.
    """
    if by not in FIGURES:
        raise ConfigurationError(f"heads are drawn by {', '.join(FIGURES)}, not by {by!r}")
    return HeadGrid(head_figures(session, source), by, FIGURES[by] if title is None else title)


def _subplots(size: tuple[float, float]) -> tuple[Figure, Axes]:
    figure = new_figure(size)
    return figure, figure.subplots()


def _literal(text: str) -> str:
    """Dollars of tokens and names are no mathematics."""
    return text.replace("$", r"\$")


def _shown(token: str) -> str:
    """Short, and with what cannot be printed escaped."""
    printable = "".join(each if each.isprintable() else each.encode("unicode_escape").decode() for each in token)
    return _literal(printable if len(printable) <= _LABEL_LENGTH else printable[: _LABEL_LENGTH - 1] + "…")
