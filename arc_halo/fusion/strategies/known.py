"""All strategies there are."""

from __future__ import annotations

from functools import cache
from importlib.metadata import entry_points
from typing import Final

from arc_halo.errors import FusionError
from arc_halo.fusion.strategies.cascade import Cascade
from arc_halo.fusion.strategies.ensemble import Ensemble
from arc_halo.fusion.strategies.hierarchical import Hierarchical
from arc_halo.fusion.strategies.parallel import Parallel
from arc_halo.fusion.strategies.protocol import Strategy
from arc_halo.fusion.strategies.routing import Routing
from arc_halo.fusion.strategies.speculative import Speculative

GROUP: Final = "arc_halo.strategies"
_OWN: Final[tuple[type[Strategy], ...]] = (Ensemble, Cascade, Parallel, Hierarchical, Routing, Speculative)


@cache
def strategies() -> dict[str, type[Strategy]]:
    """Strategies by the names that reactors call them.

    Raises
    ------
    FusionError
        An entry point names something else, or a name that is taken.
    """
    known = {each.name: each for each in _OWN}
    for entry in entry_points(group=GROUP):
        found = entry.load()
        if not (isinstance(found, type) and issubclass(found, Strategy)):
            raise FusionError(f"the entry point {entry.value} of {GROUP} is no Strategy")
        if found.name in known:
            raise FusionError(f"two strategies are called {found.name!r}: {entry.value} and {known[found.name]}")
        known[found.name] = found
    return known


def strategy_named(name: str) -> type[Strategy]:
    """The strategy of a name.

    Raises
    ------
    FusionError
        There is none.
    """
    known = strategies()
    if name not in known:
        raise FusionError(f"no strategy is called {name!r}; there are {', '.join(sorted(known))}")
    return known[name]
