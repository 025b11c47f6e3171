"""Reactors to test with: members that are functions, in a database of the test's own."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from arc_halo.fusion.members import Answer, CallableMember, TokenChoice
from arc_halo.fusion.reactor import Reactor
from arc_halo.schema import ModelInteraction, ReactorModel
from arc_halo.schema import Reactor as ReactorRow
from tests.schema.rows import add

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from arc_halo.database import Database


def store_reactor(
    database: Database,
    members: Mapping[str, Mapping[str, Any]],
    *,
    strategy: str = "parallel",
    config: Mapping[str, Any] | None = None,
    edges: Sequence[tuple[str, str, str] | tuple[str, str, str, Mapping[str, Any]]] = (),
    name: str = "reactor",
) -> None:
    """A reactor with members (columns by name) and edges (source, target, type, and a config)."""

    def store(session):
        reactor = add(session, ReactorRow(name=name, strategy=strategy, config=dict(config or {}), status="active"))
        rows = {
            each: add(session, ReactorModel(reactor=reactor, name=each, **{"endpoint": each} | dict(columns)))
            for each, columns in members.items()
        }
        for source, target, kind, *rest in edges:
            ids = {"reactor_id": reactor.id, "source_id": rows[source].id, "target_id": rows[target].id}
            add(session, ModelInteraction(**ids, interaction_type=kind, config=dict(rest[0]) if rest else {}))

    database.transaction(store)


def make_reactor(database: Database, answers: Mapping[str, Any], **options: Any) -> Reactor:
    """A reactor whose members answer by functions, texts or members."""
    inner = {name: (lambda _, text=each: text) if isinstance(each, str) else each for name, each in answers.items()}
    given = {each: options.pop(each) for each in ("scorer", "embed") if each in options}
    members = options.pop("members", {})
    store_reactor(database, {name: members.get(name, {}) for name in answers}, **options)
    return Reactor(database, options.get("name", "reactor"), inner, **given)


def sure(text: str, *probabilities: float) -> CallableMember:
    """A member of level L that always answers so, with a token of each probability."""
    choices = tuple(
        TokenChoice(
            f"t{number}", math.log(each), {f"t{number}": math.log(each), "other": math.log(max(1 - each, 1e-9))}
        )
        for number, each in enumerate(probabilities)
    )
    return CallableMember(lambda _: Answer(text, choices, generated_token_count=len(choices)), level="L")
