"""How long figures of requests are kept."""

# ruff: noqa: PLC0415  (commands import what is heavy when they run, so that --help is fast)

from __future__ import annotations

import datetime as dt
from typing import Annotated

import typer

from arc_halo.cli.infer.application import app
from arc_halo.cli.output import Json, confirm, count, print_json, say
from arc_halo.cli.prune import period


@app.command("prune")
def prune(
    context: typer.Context,
    *,
    keep: Annotated[
        dt.timedelta, typer.Option(parser=period, metavar="PERIOD", help="Keep what is younger: 90d, 24h.")
    ],
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    json: Json = False,
) -> None:
    """Drop the months of requests' figures of which nothing is younger.

    Sessions stay, with their counts.

    Example: arc-halo infer prune --keep 90d --yes
    """
    from arc_halo.inference.history import count_old_metrics, drop_old_metrics

    with context.obj.connect() as database:
        with database.session() as session:
            requests, end = count_old_metrics(session, keep)
        before = f"{end.astimezone(dt.UTC):%Y-%m-%d}"
        if not requests and not yes:
            dropped = 0  # a month without requests is not worth a question; --yes drops it
        else:
            if not yes:
                confirm(f"Drop the figures of {count(requests, 'request')}, all from before {before}?")
            dropped = database.transaction(lambda session: drop_old_metrics(session, keep))
    if json:
        print_json({"dropped_partition_count": dropped, "request_count": requests, "before": end.astimezone(dt.UTC)})
    elif not requests and not dropped:
        say(f"nothing to do: no request is from before {before}")
    else:
        say(f"dropped {count(dropped, 'month')} from before {before}, with figures of {count(requests, 'request')}")
