"""The noun ``infer``, which the files beside this one give its verbs."""

from __future__ import annotations

from typing import Annotated

import typer

app = typer.Typer(
    no_args_is_help=True, help="Models in use: answers to prompts, sessions, what requests took, old figures."
)

Reference = Annotated[
    str, typer.Argument(metavar="SESSION", help="MODEL/NAME, MODEL@VERSION/NAME, or the beginning of an id.")
]
