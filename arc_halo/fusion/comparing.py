"""Two records of operations side by side: whether they say the same, and where they first do not."""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Iterator

TOLERANCE: Final = 1e-5
"""Of log-probabilities and scores: what is computed token by token rounds otherwise than the same at once.

In float32 that is some 1e-7 of each logit; a model that was asked before has keys and values in memory, and computes
the last token of a prompt alone where it computed all of them the first time.
"""
_SHOWN: Final = 200


def difference(before: Any, after: Any, tolerance: float) -> str | None:
    """The first place where two values of JSON differ, as a sentence; None where they are the same.

    Parameters
    ----------
    tolerance
        How far numbers with a fraction may be apart, absolutely or as a share of the greater.
    """
    found = next(_differing(before, after, "", tolerance), None)
    if found is None:
        return None
    path, one, other = found
    return f"{f'{path} ' if path else ''}was {_short(one)}, and is {_short(other)}"


def _differing(before: Any, after: Any, path: str, tolerance: float) -> Iterator[tuple[str, Any, Any]]:
    if isinstance(before, dict) and isinstance(after, dict):
        for key in sorted(before.keys() | after.keys()):
            inner = f"{path}.{key}" if path else str(key)
            if key in before and key in after:
                yield from _differing(before[key], after[key], inner, tolerance)
            else:
                yield inner, before.get(key), after.get(key)
    elif isinstance(before, list) and isinstance(after, list) and len(before) == len(after):
        for at, (one, other) in enumerate(zip(before, after, strict=True)):
            yield from _differing(one, other, f"{path}[{at}]", tolerance)
    elif not _is_same(before, after, tolerance):
        yield path, before, after


def _is_same(before: Any, after: Any, tolerance: float) -> bool:
    if type(before) is float and type(after) is float:
        return math.isclose(before, after, rel_tol=tolerance, abs_tol=tolerance)
    return bool(before == after)


def _short(value: Any) -> str:
    said = json.dumps(value, ensure_ascii=False, sort_keys=True, default=str)
    return said if len(said) <= _SHOWN else f"{said[:_SHOWN]}..."
