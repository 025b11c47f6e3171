"""Activations of a model, kept under what computed them, and read back where that is cheaper than computing them.

Hook point
    A module of the model, and the place in it whose output is kept.
Input digest
    All arrays that went in, with their names: the other half of the key.
Entry
    The output of one hook point for one input; its tensor is stored once, however many entries have it.
Quota
    Bytes of distinct tensors that a tenant's entries may have. Beyond it the least recently used go; what is pinned
    stays.
Measurements
    What reading and computing took, smoothed: from that, which of them to do.
"""

from arc_halo.inference.activations.cache import ActivationCache
from arc_halo.inference.activations.keys import input_digest
from arc_halo.inference.activations.reading import StoredActivation, find_activations, get_activations
from arc_halo.inference.activations.storing import put_activations

__all__ = [
    "ActivationCache",
    "StoredActivation",
    "find_activations",
    "get_activations",
    "input_digest",
    "put_activations",
]
