"""Arc-Halo: the whole life of transformer models in one PostgreSQL database.

Model
    A transformer at one version; its weights, layers and heads are rows.
Tensor
    A distinct content of a given type and shape; models that agree share it.
Chunk
    About a mebibyte of a tensor, named by its digest, stored once.
Delta
    A chunk stored as its difference from one of another version.
Digest
    BLAKE3-256 of raw bytes: the name of content.
Checksum
    64 bits over stored bytes, compared before they are decoded.
Family
    A model and all that was made from it; lineage says how.
Embedding
    A vector with an owner and a label, searched by pgvector.
Database
    What `connect` gives: sessions and transactions on a configured PostgreSQL, or on one started for you.

Functions take a SQLAlchemy ``Session`` and never commit: what they do becomes visible together with the caller's own
rows. Whole models are compared, quantised, pruned and loaded by `arc_halo.registry`. Mapped classes are in
`arc_halo.schema`, errors in `arc_halo.errors`.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from arc_halo.database import Database, connect
    from arc_halo.errors import ArcHaloError
    from arc_halo.registry import (
        add_embeddings,
        create_model,
        export_model,
        find_model,
        find_similar_tokens,
        import_model,
        iter_tensors,
        read_tensor,
        search_embeddings,
        set_alias,
        set_trainable,
    )
    from arc_halo.schema import Model

__all__ = [
    "ArcHaloError",
    "Database",
    "Model",
    "add_embeddings",
    "connect",
    "create_model",
    "export_model",
    "find_model",
    "find_similar_tokens",
    "import_model",
    "iter_tensors",
    "read_tensor",
    "search_embeddings",
    "set_alias",
    "set_trainable",
]

__version__ = "0.5.0"

_MODULES = {
    "ArcHaloError": "arc_halo.errors",
    "Database": "arc_halo.database",
    "Model": "arc_halo.schema",
    "connect": "arc_halo.database",
}


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used.

    Alembic imports the autogenerate plugin, and with it this package, in the middle of its own import; and a command
    line that prints its help should not load numpy.
    """
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(_MODULES.get(name, "arc_halo.registry")), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """Public names, whether used already or not."""
    return [*__all__, "__version__"]
