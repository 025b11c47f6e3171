"""Activations of torch modules, kept and given back; the extra ``torch``.

Hook point
    The name of a submodule, as ``named_modules`` says it: what is kept is its output, or the first of its outputs.
Run
    A call that gives the activations of its inputs, from the cache or from the module.
"""

from arc_halo.integrations.torch_activations.hooking import CachedActivations, cached_activations
from arc_halo.integrations.torch_activations.lens import to_transformer_lens

__all__ = ["CachedActivations", "cached_activations", "to_transformer_lens"]
