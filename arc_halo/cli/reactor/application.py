"""The noun ``reactor``, which the files beside this one give its verbs, and who answers for members."""

# ruff: noqa: PLC0415  (commands import what is heavy when they run, so that --help is fast)

from __future__ import annotations

from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Annotated, Any

import typer

from arc_halo.errors import ConfigurationError, FusionError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from sqlalchemy.orm import Session

    from arc_halo.database import Database
    from arc_halo.fusion.plan import MemberPlan
    from arc_halo.schema import FusionOperation

app = typer.Typer(
    no_args_is_help=True,
    help="Reactors, several models that answer as one: make, change, run, replay, draw, measure, look at.",
)

Name = Annotated[str, typer.Argument(metavar="REACTOR", help="Name of a reactor, as `status` lists them.")]
OperationId = Annotated[
    str, typer.Argument(metavar="OPERATION", help="An id, four and more of its first characters, or `last`.")
]


def find_operation(session: Session, reference: str, reactor: str | None = None) -> FusionOperation:
    """The operation that was typed; ``last`` is the newest one of a reactor, or of all.

    Raises
    ------
    OperationNotFound, ReactorNotFound
        There is none, or no such reactor.
    """
    from sqlalchemy import select

    from arc_halo.errors import OperationNotFound
    from arc_halo.fusion.creating import find_reactor
    from arc_halo.fusion.operations import history
    from arc_halo.schema import FusionOperation
    from arc_halo.schema.columns import TENANT_ID

    if reference != "last":
        return history.find_operation(session, reference)
    ids = select(FusionOperation.id).where(FusionOperation.tenant_id == TENANT_ID)
    if reactor is not None:
        ids = ids.where(FusionOperation.reactor_id == find_reactor(session, reactor).id)
    newest = session.scalars(
        ids.order_by(FusionOperation.started_at.desc(), FusionOperation.id.desc()).limit(1)
    ).first()
    if newest is None:
        raise OperationNotFound("there is no operation yet: `arc-halo reactor run` makes one")
    return history.find_operation(session, newest)


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
                try:
                    known[kind] = _endpoints() if kind == "endpoint" else closing.enter_context(_models(database))
                except ConfigurationError as error:  # what is not installed is no failure of one member
                    raise FusionError(str(error)) from error
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
