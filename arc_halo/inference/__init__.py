"""Inference: what was computed before, given back only where it is certainly the same.

Namespace
    All that must be equal for cached content to be right: the digest of the weights, the adapter's, the tokenizer's,
    that of the config with its position encoding, type, layout, precision, and the tenant's salt.
Block
    Consecutive tokens with their keys and values; its hash covers the namespace and every token before it.
Prefix
    The longest part of a prompt whose blocks are stored.
Hit, miss
    A hit has equal tokens and a good digest. Anything else is a miss, and if something was found, an audit.
Retire
    Archive, delete or change a model version: from that commit on nothing computed with its weights is served.
Session, request
    A model in use, and one question to it, with what it took.
Sweep
    Delete what expired, what nobody can be served any more, and what is beyond a quota: tails before heads.
"""
