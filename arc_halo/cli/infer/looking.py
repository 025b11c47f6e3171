"""Inference sessions looked at: listed, and one shown with what its requests took."""

# ruff: noqa: PLC0415  (commands import what is heavy when they run, so that --help is fast)

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from arc_halo.cli.infer.application import Reference, app
from arc_halo.cli.output import Json, count, print_json, print_table, say, shown, size

if TYPE_CHECKING:
    import uuid
    from collections.abc import Sequence

    import numpy as np

    from arc_halo.inference.history import SessionSummary
    from arc_halo.schema import InferenceLatency

_DAYS = 30
_TIME_LENGTH, _ID_LENGTH = 13, 36
_FIGURES = ("latency p50", "p99", "first token p50", "tokens/s p50", "from cache")


@app.command("sessions")
def sessions(
    context: typer.Context,
    *,
    model: Annotated[
        str | None, typer.Option(help="Of this model: NAME (its newest version), NAME@VERSION or NAME@ALIAS.")
    ] = None,
    limit: Annotated[int, typer.Option(min=1, help="How many at most.")] = 30,
    json: Json = False,
) -> None:
    """List inference sessions, the newest first, with what their requests took.

    Example: arc-halo infer sessions --model demo@1
    """
    from arc_halo.inference.history import list_sessions

    with context.obj.connect() as database, database.session() as session:
        listed = list_sessions(session, model=model, limit=limit)
    if json:
        print_json([asdict(each) for each in listed])
    elif listed:
        _print_sessions(listed)
    else:
        say("no such sessions" if model else "no sessions yet; inference_session() makes one")


def _beginnings(ids: Sequence[uuid.UUID]) -> list[str]:
    """Beginnings of ids, equally long: the time, which the first two groups are, and what tells these apart."""
    texts = [str(each) for each in ids]
    length = next(n for n in range(_TIME_LENGTH, _ID_LENGTH + 1) if len({text[:n] for text in texts}) == len(texts))
    return [text[:length] for text in texts]


def _print_sessions(listed: Sequence[SessionSummary]) -> None:
    rows = [
        (
            each.model,
            each.name,
            each.status,
            each.request_count,
            _seconds(each.latency_p50_seconds),
            _seconds(each.latency_p99_seconds),
            _seconds(each.time_to_first_token_p50_seconds),
            _rate(each.tokens_per_second_p50),
            _share(each.cached_share),
            beginning,
        )
        for each, beginning in zip(listed, _beginnings([each.id for each in listed]), strict=True)
    ]
    headers = ["model", "name", "status", "requests", *_FIGURES, "session"]
    print_table(headers, rows, right=["requests", *_FIGURES, "session"])


@app.command("show")
def show(context: typer.Context, session: Reference, *, json: Json = False) -> None:
    """Show an inference session: its config, its latency over time, and each of its last days, in UTC.

    Example: arc-halo infer show demo/chat
    """
    from sqlalchemy import select

    from arc_halo.cli.train.shown import SPARKLINE_WIDTH
    from arc_halo.inference.history import describe_sessions, find_session, latency_curve
    from arc_halo.schema import InferenceLatency

    with context.obj.connect() as database, database.session() as reading:
        (summary,) = describe_sessions(reading, [find_session(reading, session)])
        of_session = select(InferenceLatency).where(InferenceLatency.inference_session_id == summary.id)
        newest = reading.scalars(of_session.order_by(InferenceLatency.day.desc()).limit(_DAYS)).all()
        curve = latency_curve(reading, summary.id, buckets=SPARKLINE_WIDTH)
    days = list(reversed(newest))
    if json:
        print_json(asdict(summary) | {"days": [_day_fields(day) for day in days], "latency_curve": curve.tolist()})
        return
    _print_summary(summary, curve)
    if days:
        _print_days(days)
    if summary.config:
        from arc_halo.cli.train.shown import settings

        print_table(["set", "to"], settings(summary.config))


def _day_fields(day: InferenceLatency) -> dict[str, Any]:
    ours = {"inference_session_id", "session_name", "model_id", "model"}
    names = [each.key for each in type(day).__mapper__.column_attrs if each.key not in ours]
    return {name: getattr(day, name) for name in names}


def _print_summary(summary: SessionSummary, curve: np.ndarray) -> None:
    from arc_halo.cli.train.shown import moment, sparkline

    name = f"/{shown(summary.name)}" if summary.name else ""
    say((f"{shown(summary.model)}{name}", "bold"), f"  {summary.id}")
    until = f", ended {moment(summary.ended_at)}" if summary.ended_at else f", heard of {moment(summary.updated_at)}"
    say(f"{summary.status}, began {moment(summary.created_at)}{until}")
    tokens = f"{count(summary.prompt_token_count, 'token')} of prompts, {summary.generated_token_count:,} generated"
    cached = "" if summary.cached_share is None else f", {_share(summary.cached_share)} of prompt tokens from the cache"
    say(f"{count(summary.request_count, 'request')}, {tokens}{cached}")
    if summary.weights_digest:
        say(f"weights {summary.weights_digest.hex()}")
    if len(curve):
        low, high = _seconds(float(curve.min())), _seconds(float(curve.max()))
        say(f"latency {sparkline(curve.view([('last_value', curve.dtype)]))} from {low} to {high}, medians in order")
    if summary.request_count > summary.measured_count:
        say(f"figures of {count(summary.request_count - summary.measured_count, 'request')} were dropped since")


def _print_days(days: Sequence[InferenceLatency]) -> None:
    headers = ["requests", "latency p50", "p90", "p99", "first token p50", "tokens/s p50", "from cache", "memory"]
    rows = [
        (
            day.day,
            day.request_count,
            _seconds(day.latency_p50_seconds),
            _seconds(day.latency_p90_seconds),
            _seconds(day.latency_p99_seconds),
            _seconds(day.time_to_first_token_p50_seconds),
            _rate(day.tokens_per_second_p50),
            _share(day.cached_share),
            "" if day.max_memory_nbytes is None else size(day.max_memory_nbytes),
        )
        for day in days
    ]
    print_table(["day", *headers], rows, right=headers)


def _seconds(value: float | None) -> str:
    """``12.5 ms``, ``3.21 s``."""
    if value is None:
        return ""
    return f"{value:.3g} s" if value >= 1 else f"{value * 1000:.3g} ms"


def _rate(value: float | None) -> str:
    return "" if value is None else f"{value:,.1f}"


def _share(value: float | None) -> str:
    return "" if value is None else f"{value:.0%}"
