"""What a live module computes with, as digests: identities that caches of its results can be named by."""

from arc_halo.integrations.torch_identity.identity import ModelIdentity, identify, namespace_of, remember_registered
from arc_halo.integrations.torch_identity.tokenizers import tokenizer_digest

__all__ = ["ModelIdentity", "identify", "namespace_of", "remember_registered", "tokenizer_digest"]
