"""The noun ``model``, which the files beside this one give its verbs."""

from __future__ import annotations

from typing import Annotated

import typer

app = typer.Typer(no_args_is_help=True, help="Models: import, export, look at, compare, search, make others of.")

Reference = Annotated[
    str, typer.Argument(metavar="MODEL", help="NAME (its newest version), NAME@VERSION or NAME@ALIAS.")
]
