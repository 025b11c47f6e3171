"""The noun ``reactor``, which the files beside this one give its verbs, and who answers for members."""

# ruff: noqa: PLC0415  (commands import what is heavy when they run, so that --help is fast)

from __future__ import annotations

from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from arc_halo.database import Database
    from arc_halo.fusion.plan import MemberPlan

app = typer.Typer(
    no_args_is_help=True, help="Reactors, several models that answer as one: make, run, replay, draw, measure, look at."
)

Name = Annotated[str, typer.Argument(metavar="REACTOR", help="Name of a reactor, as `status` lists them.")]
OperationId = Annotated[
    str, typer.Argument(metavar="OPERATION", help="An id, or four and more of its first characters.")
]


@contextmanager
def answering(database: Database, *, tell: Callable[[str], None]) -> Iterator[Callable[[MemberPlan], Any]]:
    """What answers for members: the endpoint of the environment where the row names one, else the row's model.

    What an extra is needed for is asked for when a member needs it: an endpoint takes no transformers.

    Parameters
    ----------
    tell
        Called with a sentence before a model is loaded.
    """
    with ExitStack() as closing:
        known: dict[str, Callable[[MemberPlan], Any]] = {}

        def member_of(plan: MemberPlan) -> Any:
            kind = "model" if plan.endpoint is None else "endpoint"
            if kind not in known:
                known[kind] = _endpoints() if kind == "endpoint" else closing.enter_context(_models(database))
            if kind == "model":
                tell(f"loading {plan.model} for {plan.name}")
            return known[kind](plan)

        yield member_of


def _endpoints() -> Callable[[MemberPlan], Any]:
    from arc_halo.cli.extras import require_endpoints

    require_endpoints("endpoints are asked")
    from arc_halo.integrations.openai_endpoints import endpoint_members

    return endpoint_members()


def _models(database: Database) -> Any:
    from arc_halo.cli.extras import require_transformers

    require_transformers("models out of the database answer")
    from transformers.utils import logging

    from arc_halo.integrations.transformers_members import transformers_members

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    return transformers_members(database)
