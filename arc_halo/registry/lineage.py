"""What a model was made from, and what was made from it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from sqlalchemy import select, text
from sqlalchemy.dialects.postgresql import insert

from arc_halo.errors import LineageError
from arc_halo.registry.naming import find_model
from arc_halo.schema import Model, ModelLineage

if TYPE_CHECKING:
    import uuid
    from collections.abc import Mapping, Sequence

    from sqlalchemy.orm import Session

Kind = Literal["finetune", "merge", "quantize", "prune", "distill", "copy"]

_IS_DESCENDANT = text("""
WITH RECURSIVE descendants (id) AS (
    SELECT l.child_id FROM arc_halo.model_lineage AS l WHERE l.parent_id = :ancestor
    UNION
    SELECT l.child_id FROM descendants AS d JOIN arc_halo.model_lineage AS l ON l.parent_id = d.id)
SELECT EXISTS (SELECT FROM descendants WHERE id = :descendant)
""")
# Links are added one at a time: two halves of a circle, each without a fault by itself, would not see each other.
_TAKE_TURNS = text("SELECT pg_advisory_xact_lock(hashtextextended('arc_halo.model_lineage', 0))")


def add_lineage(
    session: Session,
    child: Model | uuid.UUID | str,
    parent: Model | uuid.UUID | str,
    kind: Kind,
    recipe: Mapping[str, Any] | None = None,
) -> ModelLineage:
    """Write down that a model was made from another.

    Parameters
    ----------
    recipe
        How: whatever JSON holds. Said again, it replaces what was said before.

    Raises
    ------
    ModelNotFound
        There is no such model.
    LineageError
        The parent was itself made from the child, or is the child.
    """
    made, origin = find_model(session, child), find_model(session, parent)
    session.flush()
    session.execute(_TAKE_TURNS)
    if made.id == origin.id or session.scalar(_IS_DESCENDANT, {"ancestor": made.id, "descendant": origin.id}):
        raise LineageError(
            f"{made.name}@{made.version} cannot be made from {origin.name}@{origin.version}, which is made from it"
        )
    values = {"child_id": made.id, "parent_id": origin.id, "kind": kind, "recipe": dict(recipe or {})}
    upsert = insert(ModelLineage).values(values)
    upsert = upsert.on_conflict_do_update(
        index_elements=["child_id", "parent_id", "kind"], set_={"recipe": upsert.excluded.recipe}
    )
    statement = select(ModelLineage).from_statement(upsert.returning(ModelLineage))
    link: ModelLineage = session.scalars(statement, execution_options={"populate_existing": True}).one()
    return link


def parents_of(session: Session, model: Model | uuid.UUID | str) -> Sequence[Model]:
    """The models that one was made from, oldest first."""
    found = find_model(session, model)
    made_from = select(ModelLineage.parent_id).where(ModelLineage.child_id == found.id)
    return session.scalars(select(Model).where(Model.id.in_(made_from)).order_by(Model.created_at, Model.id)).all()


def children_of(session: Session, model: Model | uuid.UUID | str) -> Sequence[Model]:
    """The models that were made from one, oldest first."""
    found = find_model(session, model)
    made = select(ModelLineage.child_id).where(ModelLineage.parent_id == found.id)
    return session.scalars(select(Model).where(Model.id.in_(made)).order_by(Model.created_at, Model.id)).all()


def ancestors_of(session: Session, model: Model | uuid.UUID | str) -> Sequence[Model]:
    """The models that one was made from, and those that they were made from, oldest first."""
    found = find_model(session, model)
    session.flush()
    return session.scalars(select(Model).from_statement(_ANCESTORS), {"model": found.id}).all()


def family_of(session: Session, model: Model | uuid.UUID | str) -> Sequence[Model]:
    """All models that lineage or a common name ties to one, itself among them, oldest first."""
    found = find_model(session, model)
    session.flush()
    return session.scalars(select(Model).from_statement(_FAMILY), {"model": found.id}).all()


_ANCESTORS = text("""
WITH RECURSIVE ancestors (id) AS (
    SELECT l.parent_id FROM arc_halo.model_lineage AS l WHERE l.child_id = :model
    UNION
    SELECT l.parent_id FROM ancestors AS a JOIN arc_halo.model_lineage AS l ON l.child_id = a.id)
SELECT m.* FROM arc_halo.models AS m JOIN ancestors USING (id) ORDER BY m.created_at, m.id
""")
_FAMILY = text("""
WITH RECURSIVE ties (one, other) AS (
    SELECT l.parent_id, l.child_id FROM arc_halo.model_lineage AS l
    UNION ALL SELECT l.child_id, l.parent_id FROM arc_halo.model_lineage AS l
    UNION ALL SELECT a.id, b.id FROM arc_halo.models AS a JOIN arc_halo.models AS b USING (tenant_id, name)),
family (id) AS (
    SELECT CAST(:model AS uuid)
    UNION
    SELECT t.other FROM family AS f JOIN ties AS t ON t.one = f.id)
SELECT m.* FROM arc_halo.models AS m JOIN family USING (id) ORDER BY m.created_at, m.id
""")
