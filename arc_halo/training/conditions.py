"""What a search asks of a metric, as text: ``loss < 2.5``, ``best(validation/accuracy) >= 0.9``."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from arc_halo.errors import MetricError

FIGURES: Final = ("last", "best", "min", "max")
OPERATORS: Final = ("<=", ">=", "!=", "<", ">", "=")
_FIGURE: Final = re.compile(r"(\w+)\((.*)\)")
_CONDITION: Final = re.compile(r"(.*?[^<>=!\s])\s*(<=|>=|!=|==|<|>|=)\s*([^<>=!]+)")


@dataclass(frozen=True, slots=True)
class Figure:
    """One number of a metric of a run: its last value, its best by the metric's goal, its minimum or maximum."""

    metric: str
    figure: str = "last"

    def __str__(self) -> str:
        return f"{self.figure}({self.metric})"


@dataclass(frozen=True, slots=True)
class Condition:
    """A figure compared with a number; what a run has not recorded fulfils none."""

    figure: Figure
    operator: str
    value: float

    def __str__(self) -> str:
        return f"{self.figure} {self.operator} {self.value!r}"


def parse_figure(text: str) -> Figure:
    """``loss`` or ``last(loss)``, ``best(loss)``, ``min(loss)``, ``max(loss)``.

    Raises
    ------
    MetricError
        There is no name in it, or no such figure; ``last(top(5))`` is that of a metric called ``top(5)``.
    """
    text = text.strip()
    if not text or not text.isprintable():
        raise MetricError(f"{text!r} names no metric; write loss, validation/loss or best(loss)")
    matched = _FIGURE.fullmatch(text)
    if matched is None:
        return Figure(text)
    figure, metric = matched[1], matched[2].strip()
    if figure not in FIGURES or not metric:
        raise MetricError(
            f"{text!r} is no figure of a metric; write {', '.join(FIGURES[:-1])} or {FIGURES[-1]} of one, such as "
            f"best(loss), or last({text}) if the metric is called so"
        )
    return Figure(metric, figure)


def parse_condition(text: str) -> Condition:
    """A figure, one of ``<``, ``<=``, ``=``, ``!=``, ``>=``, ``>``, and a number.

    Raises
    ------
    MetricError
        It is not of that form.

    Examples
    --------
    >>> parse_condition("best(loss)<2.5")
    Condition(figure=Figure(metric='loss', figure='best'), operator='<', value=2.5)
    """
    matched = _CONDITION.fullmatch(text.strip())
    try:
        if matched:
            return Condition(parse_figure(matched[1]), matched[2].replace("==", "="), float(matched[3]))
    except ValueError as error:
        if isinstance(error, MetricError):
            raise
    raise MetricError(f"{text!r} is no condition; write a metric, a comparison and a number: best(loss) < 2.5")
