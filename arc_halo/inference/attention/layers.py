"""Which session and which layers are meant."""

from __future__ import annotations

import re
import uuid
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from sqlalchemy import func, select

from arc_halo.errors import CacheError, ModelNotFound, NotFound
from arc_halo.inference.history import find_session
from arc_halo.registry import find_model
from arc_halo.schema import AttentionHead, InferenceSession, Model, TransformerLayer

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from sqlalchemy import Row
    from sqlalchemy.orm import Session

LayerKey: TypeAlias = "TransformerLayer | str | int"
"""A layer of the model: its row, its path, or the number of the block whose attention it is."""

_ID: Final = re.compile(r"[0-9a-f][0-9a-f-]{7,35}")
_SHOWN: Final = 5


def find_inference_session(session: Session, reference: InferenceSession | uuid.UUID | str) -> InferenceSession:
    """The inference session of a reference, as `find_session` knows them; one that is new is written.

    Raises
    ------
    SessionNotFound
        There is none, or several begin so.
    """
    if isinstance(reference, InferenceSession):
        if reference in session.new:  # its keys are not set yet
            session.flush()
        return reference
    return find_session(session, reference)


def find_source(session: Session, reference: InferenceSession | Model | uuid.UUID | str) -> InferenceSession | Model:
    """A model by its name, or an inference session by its id.

    Raises
    ------
    ModelNotFound
        A name is neither.
    NotFound
        An id is no inference session's.
    """
    if isinstance(reference, InferenceSession | Model):
        return reference
    if isinstance(reference, uuid.UUID):
        return find_inference_session(session, reference)
    try:
        return find_model(session, reference)
    except ModelNotFound as error:
        if not _ID.fullmatch(reference) and "/" not in reference:
            raise
        try:
            return find_inference_session(session, reference)
        except NotFound as other:
            raise ModelNotFound(f"{error}; {other}") from None


class ModelLayers:
    """Layers of a model, read by one statement; asked by their keys.

    Raises
    ------
    CacheError
        When asked: the model has no such layer, or several stand in the block.
    """

    def __init__(self, session: Session, model_id: uuid.UUID) -> None:
        heads = select(func.count()).where(AttentionHead.layer_id == TransformerLayer.id).scalar_subquery()
        row = TransformerLayer
        statement = select(row.id, row.path, row.layer_index, row.layer_type, heads.label("heads"))
        rows = session.execute(statement.where(row.model_id == model_id).order_by(row.position)).all()
        self.by_path: Mapping[str, Row[Any]] = {each.path: each for each in rows}
        self.attention: Sequence[Row[Any]] = [each for each in rows if each.layer_type == "attention"]

    def find(self, key: LayerKey) -> Row[Any]:
        """Its id, path, layer_index, layer_type and number of heads, 0 where those are not known."""
        if isinstance(key, int):
            return self._in_block(key)
        path = key.path if isinstance(key, TransformerLayer) else key
        found = self.by_path.get(path)
        if found is None or (isinstance(key, TransformerLayer) and key.id != found.id):
            known = ", ".join(each.path for each in self.attention[:_SHOWN])
            raise CacheError(f"the model has no layer {path!r}; its attention is {known or 'not known'}")
        return found

    def _in_block(self, index: int) -> Row[Any]:
        found = [each for each in self.attention if each.layer_index == index]
        if len(found) != 1:
            paths = ", ".join(each.path for each in found)
            raise CacheError(
                f"block {index} has several layers of attention: {paths}; give a path"
                if found
                else f"the model has no attention in block {index}"
            )
        return found[0]
