"""Keys and values of attention, by the tokens they were computed from.

`KVCache` is what an application holds on to: it finds (`lookup`), reads (`load`), writes (`store`), and does all three
around a computation (`get_or_compute`). The functions below it take a session and never commit.
"""

from arc_halo.inference.kv.cache import KVCache
from arc_halo.inference.kv.costs import BreakEven
from arc_halo.inference.kv.layout import KVLayout, LayerShape
from arc_halo.inference.kv.loading import load_prefix
from arc_halo.inference.kv.lookup import CachedBlock, Prefix, find_prefix
from arc_halo.inference.kv.storing import StoredPrefix, store_prefix

__all__ = [
    "BreakEven",
    "CachedBlock",
    "KVCache",
    "KVLayout",
    "LayerShape",
    "Prefix",
    "StoredPrefix",
    "find_prefix",
    "load_prefix",
    "store_prefix",
]
