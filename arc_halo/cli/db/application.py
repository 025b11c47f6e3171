"""The noun ``db``, which the files beside this one give its verbs."""

from __future__ import annotations

import typer

app = typer.Typer(no_args_is_help=True, help="The database: schema revisions, drift, health, where it is.")
