"""What pictures by matplotlib have in common: a file, and an image in a notebook."""

from __future__ import annotations

import base64
import io
from abc import ABC, abstractmethod
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from arc_halo.errors import ConfigurationError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_SETTINGS: Final[Any] = {"svg.hashsalt": "arc-halo", "svg.fonttype": "path", "font.size": 9.0}
"""The same numbers give the same file, whatever draws it."""


class Picture(ABC):
    """A picture in a notebook, a file by `save`; what is in it is drawn by `figure`."""

    __slots__ = ()

    @property
    @abstractmethod
    def said(self) -> str:
        """What it shows, for those who do not see it."""

    @abstractmethod
    def figure(self) -> Figure:
        """A new figure of matplotlib, to be changed and saved by its own methods.

        Raises
        ------
        ConfigurationError
            matplotlib is not installed.
        """

    def save(self, path: str | Path) -> None:
        """Write it as what the file's name says: ``.png``, ``.svg``, or whatever else matplotlib knows.

        Raises
        ------
        ConfigurationError
            matplotlib is not installed.
        """
        self._write(path, Path(path).suffix.removeprefix("."))

    def _write(self, target: Any, kind: str) -> None:
        figure = self.figure()
        from matplotlib import rc_context  # noqa: PLC0415  an extra

        with rc_context(_SETTINGS):
            figure.savefig(target, format=kind, dpi=150, metadata={"Date": None} if kind == "svg" else None)

    def _repr_png_(self) -> bytes | None:
        """None without matplotlib: a notebook shows the text then."""
        buffer = io.BytesIO()
        try:
            self._write(buffer, "png")
        except ConfigurationError:
            return None
        return buffer.getvalue()

    def _repr_html_(self) -> str | None:
        png = self._repr_png_()
        if png is None:
            return None
        source = base64.b64encode(png).decode()
        return f'<img alt="{escape(self.said)}" style="max-width:100%" src="data:image/png;base64,{source}">'


def new_figure(size: tuple[float, float]) -> Figure:
    """An empty figure of that size in inches.

    Raises
    ------
    ConfigurationError
        matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure  # noqa: PLC0415  an extra
    except ImportError as error:
        raise ConfigurationError("pictures are drawn by matplotlib: pip install 'arc-halo[plot]'") from error
    return Figure(figsize=size, layout="constrained")
