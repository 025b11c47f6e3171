"""Which model is meant: a name, ``name@version`` or ``name@alias``."""

from __future__ import annotations

import re
import uuid
from typing import TYPE_CHECKING

from sqlalchemy import func, select, text
from sqlalchemy.dialects.postgresql import insert

from arc_halo.errors import InvalidName, ModelExists, ModelNotFound
from arc_halo.schema import Model, ModelAlias
from arc_halo.schema.columns import TENANT_ID

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from sqlalchemy import ColumnElement
    from sqlalchemy.orm import Session

_NUMBER = re.compile(r"[0-9]{1,9}")
_SHOWN = 10
_MAX_NAME_LENGTH = 200  # four bytes each fit into an index
_IDS = text("""
SELECT asked.reference,
       CASE WHEN asked.selector IS NULL
            THEN (SELECT m.id FROM arc_halo.models AS m
                   WHERE m.tenant_id = :tenant_id AND m.name = asked.name
                   ORDER BY m.created_at DESC, m.id DESC LIMIT 1)
            ELSE coalesce(
                (SELECT m.id FROM arc_halo.models AS m
                  WHERE m.tenant_id = :tenant_id AND m.name = asked.name AND m.version = asked.selector),
                (SELECT a.model_id FROM arc_halo.model_aliases AS a
                  WHERE a.tenant_id = :tenant_id AND a.name = asked.name AND a.alias = asked.selector))
       END AS id
  FROM unnest(CAST(:texts AS text[]), CAST(:names AS text[]), CAST(:selectors AS text[]))
       AS asked (reference, name, selector)
""")


def check_name(what: str, text: str) -> None:
    """Raise `InvalidName` for a name, version or alias that could not be referred to."""
    if not text.strip() or "@" in text or not text.isprintable() or len(text) > _MAX_NAME_LENGTH:
        raise InvalidName(f"{what} {text!r:.80} must be 1 to 200 printable characters without '@'")


def named(entity: type[Model | ModelAlias], name: str) -> ColumnElement[bool]:
    """The condition for rows of that name; names belong to a tenant."""
    return (entity.tenant_id == TENANT_ID) & (entity.name == name)


def find_model(session: Session, reference: Model | uuid.UUID | str) -> Model:
    """The model of a reference.

    A name alone is its newest version. After ``@`` stands a version or, where there is no such version, an alias.

    Raises
    ------
    ModelNotFound
        Nothing has that name, version or alias; the message lists what there is.

    Examples
    --------
    >>> find_model(session, "minilm@production").version  # doctest: +SKIP
    '2'
    """
    if isinstance(reference, Model):
        return reference
    if isinstance(reference, uuid.UUID):
        model = session.get(Model, reference)
    elif not reference.isprintable():
        raise ModelNotFound(f"no model {reference!r}; names are of printable characters")
    else:
        name, at, selector = reference.rpartition("@") if "@" in reference else (reference, "", "")
        model = _by_selector(session, name, selector) if at else newest_version(session, name)
    if model is None:
        raise ModelNotFound(f"no model {str(reference)!r}; {_known(session, reference)}")
    return model


def find_model_ids(session: Session, references: Iterable[uuid.UUID | str]) -> dict[uuid.UUID | str, uuid.UUID]:
    """Ids of the models of many references, as `find_model` reads them, by two statements at most.

    Raises
    ------
    ModelNotFound
        Nothing has that name, version, alias or id; the message lists what there is.
    """
    asked = list(dict.fromkeys(references))
    texts = [each for each in asked if isinstance(each, str) and each.isprintable()]
    parts = [each.rpartition("@") if "@" in each else (each, "", None) for each in texts]
    columns = {"texts": texts, "names": [each[0] for each in parts], "selectors": [each[2] for each in parts]}
    found: dict[uuid.UUID | str, uuid.UUID] = {}
    if texts:
        rows = session.execute(_IDS, {"tenant_id": TENANT_ID} | columns)
        found |= {row.reference: row.id for row in rows if row.id is not None}
    if ids := [each for each in asked if isinstance(each, uuid.UUID)]:
        found |= {each: each for each in session.scalars(select(Model.id).where(Model.id.in_(ids)))}
    for each in asked:
        if each not in found:
            found[each] = find_model(session, each).id  # which says what there is
    return found


def newest_version(session: Session, name: str) -> Model | None:
    """The version of a name that was made last; None if there is none."""
    newest = select(Model).where(named(Model, name)).order_by(Model.created_at.desc(), Model.id.desc()).limit(1)
    return session.scalars(newest).one_or_none()


def _by_selector(session: Session, name: str, selector: str) -> Model | None:
    by_version = select(Model).where(named(Model, name), Model.version == selector)
    by_alias = select(Model).join(ModelAlias).where(named(ModelAlias, name), ModelAlias.alias == selector)
    return session.scalars(by_version).one_or_none() or session.scalars(by_alias).one_or_none()


def _known(session: Session, reference: object) -> str:
    name = str(reference).rpartition("@")[0] or str(reference)
    newest = select(Model.version).where(named(Model, name)).order_by(Model.created_at.desc(), Model.id.desc())
    versions = session.scalars(newest.limit(_SHOWN + 1)).all()
    if versions:
        more = "..., " * (len(versions) > _SHOWN)
        return f"versions of {name!r} are {more}{', '.join(reversed(versions[:_SHOWN]))}"
    names = session.scalars(
        select(Model.name).where(Model.tenant_id == TENANT_ID).distinct().order_by(Model.name)
    ).all()
    return f"there are {listed(names)}" if names else "the database holds no model; import one first"


def listed(names: Sequence[str]) -> str:
    """Names in a sentence, of many the first: ``a, b, c and 2 more``."""
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more


def next_version(session: Session, name: str) -> str:
    """The number after the highest version that is one."""
    versions = session.scalars(select(Model.version).where(named(Model, name)))
    return str(max((int(v) for v in versions if _NUMBER.fullmatch(v)), default=0) + 1)


def set_alias(session: Session, model: Model | uuid.UUID | str, alias: str) -> ModelAlias:
    """Point ``name@alias`` at a version, wherever it pointed before.

    Raises
    ------
    ModelNotFound
        There is no such model.
    InvalidName
        The alias is no name.
    ModelExists
        A version of the model has that name.
    """
    target = find_model(session, model)
    check_name("alias", alias)
    if session.scalar(select(func.count()).where(named(Model, target.name), Model.version == alias)):
        raise ModelExists(f"{target.name!r} has a version {alias!r}, which that alias would hide; choose another")
    values = {"tenant_id": target.tenant_id, "name": target.name, "alias": alias, "model_id": target.id}
    upsert = insert(ModelAlias).values(values)
    upsert = upsert.on_conflict_do_update(
        index_elements=["tenant_id", "name", "alias"], set_={"model_id": upsert.excluded.model_id}
    )
    statement = select(ModelAlias).from_statement(upsert.returning(ModelAlias))
    stored: ModelAlias = session.scalars(statement, execution_options={"populate_existing": True}).one()
    return stored
