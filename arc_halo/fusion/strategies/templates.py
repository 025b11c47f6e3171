"""What members are asked by strategies: templates with places like ``{question}``."""

from __future__ import annotations

import re
from typing import Final

from arc_halo.errors import FusionError

_PLACE: Final = re.compile(r"\{(?P<name>[a-z_]+)\}")


def filled(template: str, **values: object) -> str:
    """A template with its places filled; what is put there is not looked into again.

    Raises
    ------
    FusionError
        It has a place that nothing is known for.

    Examples
    --------
    >>> filled("{question} in {answer}", question="{answer}?", answer=1)
    '{answer}? in 1'
    """
    check_places("a prompt", template, *values)
    return _PLACE.sub(lambda found: str(values[found["name"]]), template)


def check_places(what: str, template: str, *names: str) -> None:
    """See that a template has no other places than these: as soon as it is given, not when members are asked.

    Raises
    ------
    FusionError
        It has.
    """
    for found in _PLACE.finditer(template):
        if found["name"] not in names:
            raise FusionError(f"{what} has no place {{{found['name']}}}; it has {', '.join(names)}")
