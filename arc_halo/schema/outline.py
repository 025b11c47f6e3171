"""The layer tree of a model for people to read: sizes added up, blocks that are alike shown once."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from sqlalchemy import BigInteger, func, select

from arc_halo.schema.core import AttentionHead, TransformerLayer
from arc_halo.schema.tensors import ModelWeight, Tensor

if TYPE_CHECKING:
    import uuid
    from collections.abc import Iterable, Sequence

    from sqlalchemy import ColumnElement, Row, Select, SQLColumnExpression
    from sqlalchemy.orm import Session

_NUMBER = re.compile(r"\d+")


@dataclass(frozen=True, slots=True)
class Branch:
    """A layer with what is below it, or several alike in a row.

    Attributes
    ----------
    first, last
        Names of the first and last of them, relative to the layer above; the same for a single one.
    count
        How many there are; all other numbers are those of one.
    head_count, parameter_count, trainable_parameter_count, nbytes
        With all below; tied weights are counted where they are owned.
    """

    first: str
    last: str
    count: int
    layer_type: str
    input_dim: int | None
    output_dim: int | None
    head_count: int
    parameter_count: int
    trainable_parameter_count: int
    nbytes: int
    children: tuple[Branch, ...]

    @property
    def label(self) -> str:
        """Its name, or the first and last name of several."""
        return self.first if self.count == 1 else f"{self.first} ... {self.last} ({self.count}x)"


def outline(session: Session, model_id: uuid.UUID) -> tuple[Branch, ...]:
    """The top of a model's layer tree, by one query."""
    children: dict[uuid.UUID | None, list[Row[tuple[object, ...]]]] = {}
    for row in session.execute(_layers(model_id)):
        children.setdefault(row.parent_id, []).append(row)
    return _branches(children, None)


def _layers(model_id: uuid.UUID) -> Select[tuple[object, ...]]:
    weights = (
        select(
            ModelWeight.layer_id,
            _total(Tensor.element_count, ModelWeight.is_parameter).label("parameter_count"),
            _total(Tensor.element_count, ModelWeight.is_parameter, ModelWeight.is_trainable).label("trainable_count"),
            _total(Tensor.nbytes, ModelWeight.tied_to_id.is_(None)).label("nbytes"),
        )
        .join_from(ModelWeight, Tensor, ModelWeight.tensor_id == Tensor.id)
        .where(ModelWeight.model_id == model_id)
        .group_by(ModelWeight.layer_id)
        .subquery()
    )
    heads = select(func.count()).where(AttentionHead.layer_id == TransformerLayer.id).scalar_subquery()
    layer = TransformerLayer
    return (
        select(
            *(layer.id, layer.parent_id, layer.name, layer.layer_type, layer.input_dim, layer.output_dim),
            heads.label("head_count"),
            *(
                func.coalesce(weights.c[each], 0).label(each)
                for each in ("parameter_count", "trainable_count", "nbytes")
            ),
        )
        .outerjoin(weights, weights.c.layer_id == layer.id)
        .where(layer.model_id == model_id)
        .order_by(layer.position)
    )


def _total(column: SQLColumnExpression[int], *counted: SQLColumnExpression[bool]) -> ColumnElement[int]:
    return func.sum(column).filter(*counted).cast(BigInteger)


def _branches(
    children: dict[uuid.UUID | None, list[Row[tuple[object, ...]]]], parent_id: uuid.UUID | None
) -> tuple[Branch, ...]:
    return tuple(_fold(_branch(row, _branches(children, row.id)) for row in children.get(parent_id, ())))


def _branch(row: Row[tuple[object, ...]], children: Sequence[Branch]) -> Branch:
    def below(name: str) -> int:
        return sum(child.count * getattr(child, name) for child in children)

    return Branch(
        first=row.name,
        last=row.name,
        count=1,
        layer_type=row.layer_type,
        input_dim=row.input_dim,
        output_dim=row.output_dim,
        head_count=row.head_count + below("head_count"),
        parameter_count=row.parameter_count + below("parameter_count"),
        trainable_parameter_count=row.trainable_count + below("trainable_parameter_count"),
        nbytes=row.nbytes + below("nbytes"),
        children=tuple(children),
    )


def _fold(branches: Iterable[Branch]) -> list[Branch]:
    """Neighbours that differ only in a number of their name become one."""
    folded: list[Branch] = []
    for branch in branches:
        if folded and _shape(folded[-1]) == _shape(branch):
            folded[-1] = replace(folded[-1], last=branch.last, count=folded[-1].count + branch.count)
        else:
            folded.append(branch)
    return folded


def _shape(branch: Branch) -> Branch:
    return replace(branch, first=_NUMBER.sub("#", branch.first), last="", count=1)
