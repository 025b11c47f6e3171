"""The noun ``train``, which the files beside this one give its verbs."""

from __future__ import annotations

from typing import Annotated

import typer

app = typer.Typer(no_args_is_help=True, help="Training runs: list, look at, compare, follow, draw, seal, delete.")

Reference = Annotated[
    str, typer.Argument(metavar="RUN", help="MODEL/NAME, MODEL@VERSION/NAME, or the beginning of an id.")
]
References = Annotated[
    list[str], typer.Argument(metavar="RUN...", help="MODEL/NAME, MODEL@VERSION/NAME, or the beginning of an id.")
]
Metrics = Annotated[
    list[str] | None,
    typer.Option(
        "--metric",
        metavar="METRIC",
        help="A metric: loss, validation/loss; repeatable. By default those with a goal, or all if none has one.",
    ),
]
