"""A reactor as its operations leave it: what later releases must be able to read, replay and learn from."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import numpy as np

from arc_halo.fusion.defining import define_reactor
from arc_halo.fusion.members import Answer, CallableMember, TokenChoice
from arc_halo.fusion.memory import remember
from arc_halo.fusion.plan import Budget
from arc_halo.fusion.reactor import Reactor
from arc_halo.fusion.state import append_state

if TYPE_CHECKING:
    from arc_halo.database import Database

NAME: Final = "jury"
MEMBERS: Final[dict[str, dict[str, Any]]] = {
    "small": {"endpoint": "small"},
    "large": {"endpoint": "large", "weight": 3.0},
    "critic": {"endpoint": "critic", "role": "validator"},
}
EDGES: Final = [("small", "large", "feeds_into"), ("critic", "large", "validates")]
QUESTION: Final = {"prompt": "What is a row?", "reference": "A tuple."}
MEMORY: Final = "Rows are tuples."
VECTOR: Final = np.eye(4, dtype=np.float32)[0]


def _sure(text: str, log_probability: float) -> CallableMember:
    choices = (TokenChoice(text, log_probability),)
    return CallableMember(lambda _: Answer(text, choices, generated_token_count=1, cost=0.25), level="L")


ANSWERING: Final[dict[str, Any]] = {
    "small": _sure("A line.", -0.5),
    "large": _sure("A tuple.", -0.125),
    "critic": lambda _: "Accept.",
}


def fill(database: Database) -> None:
    """Run operations of three strategies, the last of them without an answer."""
    with database.session() as session:
        define_reactor(session, NAME, "hierarchical", members=MEMBERS, edges=EDGES)
        append_state(session, NAME, parent=None, context={"topic": "rows"}, goals=["answer"])
        remember(session, NAME, MEMORY, VECTOR)
        session.commit()
    Reactor(database, NAME, ANSWERING).run(QUESTION, seed=3)
    for strategy, options in (("ensemble", {"method": "vote"}), ("cascade", {"threshold": 0.75})):
        with database.session() as session:
            define_reactor(
                session, NAME, strategy, members=MEMBERS, edges=EDGES, config={"options": options, "min_answers": 2}
            )
            session.commit()
        budget = Budget(tokens=0) if strategy == "cascade" else None
        Reactor(database, NAME, ANSWERING).run(QUESTION, seed=3, budget=budget, check=False)
