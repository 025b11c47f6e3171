"""What is told of a stored model by the ORM, by SQL and by pgvector."""

# ruff: noqa: PLC0415  (commands import what is heavy when they run, so that --help is fast)

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from arc_halo.cli.demo.step import step
from arc_halo.cli.description import print_tree
from arc_halo.cli.output import print_table, say, shown
from arc_halo.errors import NotFound

if TYPE_CHECKING:
    from sqlalchemy.orm import Session

    from arc_halo.schema import Model

_SPACES: Final = ("\u0120", "\u2581")  # of byte-level BPE, of SentencePiece
_STATISTICS: Final = """\
SELECT w.name, t.std, t.min_value, t.max_value
  FROM arc_halo.model_weights AS w
  JOIN arc_halo.tensor_metadata AS t ON t.id = w.tensor_id
 WHERE w.model_id = :model AND w.category <> 'buffer'
   AND cardinality(t.shape) = 2
 ORDER BY t.std DESC NULLS LAST LIMIT 5"""


def architecture(session: Session, model: Model) -> None:
    """The layer tree."""
    from arc_halo.schema.outline import outline

    with step("3  Its architecture", "Layers and heads are rows, told from config.json and the names of tensors."):
        print_tree(f"{model.name}@{model.version}", outline(session, model.id))


def parameters(session: Session, model: Model) -> None:
    """Counted in three places."""
    from sqlalchemy import func, select

    from arc_halo.registry import find_model
    from arc_halo.schema import Model

    with step(
        "4  Its parameters",
        "A hybrid property counts in Python or in SQL; a function of the database counts for every other client.",
    ):
        selected = session.execute(
            select(Model.parameter_count, Model.trainable_parameter_count).where(Model.id == model.id)
        ).one()
        counted = func.arc_halo.calculate_model_parameters(model.id).table_valued("total", "trainable")
        called = session.execute(select(counted.c.total, counted.c.trainable)).one()
        loaded = find_model(session, model.id)
        rows = [
            ("model.parameter_count", loaded.parameter_count, loaded.trainable_parameter_count),
            ("select(Model.parameter_count)", *selected),
            ("arc_halo.calculate_model_parameters()", *called),
        ]
        print_table(["counted by", "parameters", "trainable"], rows, right=["parameters", "trainable"])


def statistics(session: Session, model: Model) -> None:
    """The widest matrices, by a query that is shown."""
    from sqlalchemy import text

    with step("5  SQL over tensors", "Statistics were taken while the bytes went by. The widest matrices:"):
        say((_STATISTICS, "green"))
        result = session.execute(text(_STATISTICS), {"model": model.id})
        names = list(result.keys())
        rows = [[f"{cell:.4g}" if isinstance(cell, float) else cell for cell in row] for row in result]
        print_table(names, rows, right=names[1:])


def tokens(session: Session, model: Model, asked: tuple[str, ...]) -> None:
    """Neighbours of tokens that tell something."""
    from arc_halo.registry import find_similar_tokens

    with step("6  Nearest tokens", "The rows of the embedding matrix are vectors to pgvector, with their texts."):
        found, reason = {}, ""
        for token in asked:
            try:
                found[token] = find_similar_tokens(session, model, token, 6)
            except NotFound as error:
                reason = str(error)
        for token, matches in found.items():
            near = ", ".join(f"{shown(each.label)} {each.similarity:.2f}" for each in matches)
            say((token, "bold"), f" is near {near}")
        if not found:
            say(shown(reason))
        elif any(str(each.label).startswith(_SPACES) for matches in found.values() for each in matches):
            say(f"({' or '.join(_SPACES)} is how a tokenizer writes a leading space)")
