"""Nearest vectors: tokens of a model, and vectors of any kind."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
from sqlalchemy import ColumnElement, Double, Integer, bindparam, func, literal, literal_column, select, text
from sqlalchemy.orm import Session, aliased

from arc_halo.errors import TensorError, TensorNotFound, TokenNotFound
from arc_halo.registry.naming import find_model
from arc_halo.schema import Embedding, Model, ModelWeight
from arc_halo.schema.columns import TENANT_ID, uuid7
from arc_halo.schema.html import html_table
from arc_halo.schema.tensors import (
    ACROSS_OWNERS_KINDS,
    BIT_DIMENSIONS,
    HALFVEC_DIMENSIONS,
    VECTOR_DIMENSIONS,
    WEIGHT_KINDS,
)
from arc_halo.schema.types import Vector
from arc_halo.store.embeddings import put_vectors

if TYPE_CHECKING:
    import uuid
    from collections.abc import Sequence

COSINE = "OPERATOR(public.<=>)"
HAMMING = "OPERATOR(public.<~>)"
MAX_DIMENSION = 16_000  # pgvector's
CANDIDATES_PER_RESULT = 10
"""How many rows of an approximate index are ranked again by their exact distance, for each row asked for."""


@dataclass(frozen=True, slots=True)
class Match:
    """A vector that was found; ``similarity`` is the cosine, 1 for the same direction."""

    label: str | None
    row_index: int
    similarity: float
    owner_id: uuid.UUID = field(repr=False)


class Matches(list[Match]):
    """What a search found, nearest first; a table in a notebook."""

    def _repr_html_(self) -> str:
        rows = [(each.label, each.similarity, each.row_index) for each in self]
        return html_table(["label", "similarity", "row"], rows)


def find_similar_tokens(session: Session, model: Model | uuid.UUID | str, token: str, k: int = 10) -> Matches:
    """The tokens whose embeddings point most nearly where the given one's does.

    Exact: every row of the model's token embedding is compared, in the database.

    Parameters
    ----------
    token
        As the vocabulary has it. Where that tells words from parts of words by a leading space, the word is meant.

    Raises
    ------
    TokenNotFound
        The vocabulary has no such token; the message lists some that begin alike.
    TensorNotFound
        The model's token embeddings are codes, or were not made searchable when it, or what it was made from, was
        imported.
    """
    _check_count(k)
    found = find_model(session, model)
    tensor_id = _token_embedding(session, found)
    row_index = _find_token(session, tensor_id, token) if _is_text(token) else None
    if row_index is None:
        raise _unknown_token(session, found, tensor_id, token)
    given = aliased(Embedding)
    distance: ColumnElement[float] = Embedding.vector.op(COSINE, return_type=Double())(given.vector)
    nearest = (
        select(Embedding.label, Embedding.row_index, 1 - distance, Embedding.owner_id)
        .join_from(Embedding, given, given.row_index == row_index)
        .where(*_token_rows(Embedding, tensor_id), *_token_rows(given, tensor_id), Embedding.row_index != row_index)
        .order_by(distance, Embedding.row_index)
        .limit(k)
    )
    return Matches(Match(*each) for each in session.execute(nearest))


def _token_rows(embedding: type[Embedding], tensor_id: uuid.UUID) -> tuple[ColumnElement[bool], ...]:
    """Conditions in the order of the primary key."""
    return embedding.tenant_id == TENANT_ID, embedding.kind == "token", embedding.owner_id == tensor_id


def _find_token(session: Session, tensor_id: uuid.UUID, token: str) -> int | None:
    spelled = _spellings(token)
    return session.scalar(
        select(Embedding.row_index)
        .where(Embedding.tensor_id == tensor_id, Embedding.kind == "token", Embedding.label.in_(spelled))
        .order_by(func.array_position(spelled, Embedding.label))
        .limit(1)
    )


def _check_count(k: int) -> None:
    if k < 1:
        raise TensorError(f"k is {k}; ask for one or more of the nearest")


def _token_embedding(session: Session, model: Model) -> uuid.UUID:
    statement = (
        select(ModelWeight.tensor_id)
        .where(ModelWeight.model_id == model.id, ModelWeight.category == "embedding")
        .where(
            select(Embedding.row_index)
            .where(Embedding.tensor_id == ModelWeight.tensor_id, Embedding.kind == "token")
            .exists()
        )
        .order_by(ModelWeight.position)
        .limit(1)
    )
    tensor_id = session.scalar(statement)
    if tensor_id is None:
        raise TensorNotFound(
            f"{model.name}@{model.version} has no searchable token embeddings; "
            "search the version that it was made from, or import it again with embeddings and its tokenizer files"
        )
    return tensor_id


def _spellings(token: str) -> list[str]:
    """A word's beginning as byte-level BPE and SentencePiece write it, before the same letters inside of words."""
    return [f"\u0120{token}", f"\u2581{token}", token]


def _unknown_token(session: Session, model: Model, tensor_id: uuid.UUID, token: str) -> TokenNotFound:
    prefix = "".join(filter(str.isprintable, token[:3]))
    alike = session.scalars(
        select(Embedding.label)
        .where(Embedding.tensor_id == tensor_id, Embedding.kind == "token")
        .where(func.ltrim(Embedding.label, "\u0120\u2581").istartswith(prefix, autoescape=True))
        .order_by(func.length(Embedding.label), Embedding.label)
        .limit(8)
    ).all()
    hint = f"tokens that begin alike: {', '.join(map(repr, alike))}" if alike else "try a shorter or more common word"
    return TokenNotFound(f"the vocabulary of {model.name}@{model.version} has no token {token!r}; {hint}")


def add_embeddings(
    session: Session,
    kind: str,
    vectors: np.ndarray | Sequence[Sequence[float]],
    *,
    labels: Sequence[str | None] | None = None,
    owner_id: uuid.UUID | None = None,
) -> uuid.UUID:
    """Store vectors under an owner, in the caller's transaction.

    Parameters
    ----------
    kind
        ``text``, ``run`` or ``tensor``. Token, position and segment embeddings come with a model's import.
    vectors
        Shape (n, dimension), finite, dimension at most 16,000.
    labels
        What each vector stands for.
    owner_id
        The row they belong to, such as a model or run; vectors are added after those it has. A new id by default.

    Returns
    -------
    UUID
        The owner.

    Raises
    ------
    TensorError
        The vectors have the wrong shape or kind, or elements that are not finite.
    """
    if kind not in ACROSS_OWNERS_KINDS:
        raise TensorError(f"kind {kind!r} cannot be added by hand; choose one of {', '.join(ACROSS_OWNERS_KINDS)}")
    matrix = _as_vectors(vectors, axes=2)
    names = [None] * len(matrix) if labels is None else list(labels)
    if len(names) != len(matrix):
        raise TensorError(f"{len(names)} labels for {len(matrix)} vectors; give one each")
    for name in names:
        if name is not None and not _is_text(name):
            raise TensorError(f"label {name!r:.80} is no text that the database can hold; give other labels")
    owner = uuid7() if owner_id is None else owner_id
    last = select(func.max(Embedding.row_index)).where(Embedding.kind == kind, Embedding.owner_id == owner)
    highest = session.scalar(last)
    put_vectors(session, kind, owner, matrix, labels=names, first_row=0 if highest is None else highest + 1)
    return owner


def search_embeddings(
    session: Session,
    kind: str,
    vector: np.ndarray | Sequence[float],
    k: int = 10,
    *,
    owner_id: uuid.UUID | None = None,
    where: ColumnElement[bool] | None = None,
) -> Matches:
    """The stored vectors of a kind nearest to the given one, by cosine.

    Within one owner, and for kinds that belong to weights, every vector is compared. Across owners an HNSW index
    finds candidates where there is one for the dimension, which are then ranked by their exact distance.

    Parameters
    ----------
    vector
        Shape (dimension,); vectors of other dimensions are not compared.
    owner_id
        Only vectors of this owner.
    where
        A condition on columns of `Embedding`.

    Raises
    ------
    TensorError
        There is no such kind, or the vector is not one.
    """
    if kind not in (*WEIGHT_KINDS, *ACROSS_OWNERS_KINDS):
        raise TensorError(f"no embeddings of kind {kind!r}; kinds are {', '.join(WEIGHT_KINDS + ACROSS_OWNERS_KINDS)}")
    _check_count(k)
    asked = _as_vectors(vector, axes=1)
    # Literal, so that the planner can prove a partial index's predicate whatever the plan.
    conditions = [
        Embedding.tenant_id == TENANT_ID,
        Embedding.kind == bindparam("kind", kind, literal_execute=True),
        Embedding.dimension == bindparam("dimension", asked.size, Integer, literal_execute=True),
    ]
    conditions += [Embedding.owner_id == owner_id] if owner_id is not None else []
    conditions += [where] if where is not None else []
    target = literal(asked, Vector)
    exact: ColumnElement[float] = Embedding.vector.op(COSINE, return_type=Double())(target)
    columns = (Embedding.label, Embedding.row_index, (1 - exact).label("similarity"), Embedding.owner_id)
    statement = select(*columns).where(*conditions)
    approximate = _index_distance(asked) if owner_id is None and kind in ACROSS_OWNERS_KINDS else None
    if approximate is None:
        ranked = statement.order_by(exact, Embedding.owner_id, Embedding.row_index).limit(k)
    else:
        # Filters must not starve the index: it goes on until enough rows pass them.
        session.execute(text("SELECT set_config('hnsw.iterative_scan', 'relaxed_order', true)"))
        near = statement.order_by(approximate).limit(k * CANDIDATES_PER_RESULT).subquery()
        ranked = select(near).order_by(near.c.similarity.desc(), near.c.owner_id, near.c.row_index).limit(k)
    return Matches(Match(*each) for each in session.execute(ranked))


def _as_vectors(values: object, *, axes: int) -> np.ndarray:
    """Vectors along the last axis that every column and index type can hold."""
    try:
        with np.errstate(over="ignore"):
            vectors = np.asarray(values, dtype=np.float32)
    except (TypeError, ValueError) as error:
        raise TensorError(f"these are no vectors: {error}; give numbers, in rows of equal length") from error
    if vectors.ndim != axes or not 0 < vectors.shape[-1] <= MAX_DIMENSION:
        raise TensorError(f"shape {vectors.shape} must have {axes} axes, and 1 to {MAX_DIMENSION:,} elements a vector")
    largest = np.finfo(np.float16 if vectors.shape[-1] in HALFVEC_DIMENSIONS else np.float32).max
    if not (np.abs(vectors) <= largest).all():
        raise TensorError(f"vectors have elements that are not finite or beyond {largest:g}; scale them")
    return vectors


def _is_text(label: object) -> bool:
    try:
        return isinstance(label, str) and b"\0" not in label.encode()
    except UnicodeEncodeError:
        return False


def _index_distance(vector: np.ndarray) -> ColumnElement[float] | None:
    """The distance an HNSW index of `Embedding` orders by, for vectors of this dimension."""
    dimension = vector.size
    column = "arc_halo.embeddings.vector"
    if dimension in VECTOR_DIMENSIONS or dimension in HALFVEC_DIMENSIONS:
        type_ = f"public.{'vector' if dimension in VECTOR_DIMENSIONS else 'halfvec'}({dimension})"
        given: ColumnElement[float] = literal_column(f"{_vector_literal(vector)}::{type_}")
        return literal_column(f"({column}::{type_})").op(COSINE, return_type=Double())(given)
    if dimension in BIT_DIMENSIONS:
        bits = "".join("1" if element > 0 else "0" for element in vector.tolist())
        expression: ColumnElement[float] = literal_column(f"((public.binary_quantize({column}))::bit({dimension}))")
        return expression.op(HAMMING, return_type=Double())(literal_column(f"B'{bits}'"))
    return None


def _vector_literal(vector: np.ndarray) -> str:
    return "'[" + ",".join(map(repr, vector.tolist())) + "]'"
