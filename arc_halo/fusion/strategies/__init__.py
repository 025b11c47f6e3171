"""Strategies by name: those of this package, and those that others bring by entry point.

An entry point of the group ``arc_halo.strategies`` names a subclass of `Strategy`; its ``name`` is what a reactor says.
"""

from arc_halo.fusion.strategies.known import strategies, strategy_named
from arc_halo.fusion.strategies.protocol import Fused, Strategy

__all__ = ["Fused", "Strategy", "strategies", "strategy_named"]
