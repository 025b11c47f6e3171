"""Responses that were computed before, found by the same prompt, or by one that means nearly the same.

Question
    A prompt and the settings it is answered with: what an exact hit has the same of.
Settings
    All that a response depends on beside weights and prompt: temperature, top_p, length, seed, system prompt, ...
Exact hit
    Same namespace, settings and prompt: digests find it, the texts themselves are compared.
Similar hit
    Same namespace, settings and embedder, and embeddings that point nearly the same way: an answer to another question,
    served because the caller said how near is near enough.
"""

from arc_halo.inference.responses.cache import Answer, ResponseCache
from arc_halo.inference.responses.finding import FoundResponse, find_response, find_similar_response
from arc_halo.inference.responses.keys import settings_digest
from arc_halo.inference.responses.putting import put_response

__all__ = [
    "Answer",
    "FoundResponse",
    "ResponseCache",
    "find_response",
    "find_similar_response",
    "put_response",
    "settings_digest",
]
