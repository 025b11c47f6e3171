"""Caches looked at: what they hold and give, their entries used most, and what was found and not served."""

# ruff: noqa: PLC0415  (commands import what is heavy when they run, so that --help is fast)

from __future__ import annotations

import json as json_text
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from arc_halo.cli.cache.application import ENTRIES, Kind, app
from arc_halo.cli.output import Json, count, print_json, print_table, say, shown, size, some

if TYPE_CHECKING:
    from collections.abc import Container, Mapping, Sequence

    from sqlalchemy.orm import Session

    from arc_halo.inference.usage import UsedEntry
    from arc_halo.schema import CacheAudit, CacheStatus

_SUMS: Final = ("entry_count", "stored_nbytes", "lookup_count", "hit_count", "asked_token_count", "hit_token_count")
_FIGURES: Final = ("entries", "size", "lookups", "hits", "tokens", "read MB/s", "computed tokens/s", "break-even MB/s")
_PROMPT_LENGTH: Final = 60
_MEGA: Final = 1e6


@app.command("stats")
def stats(context: typer.Context, *, json: Json = False) -> None:
    """Show what each namespace of the caches holds, how often it was asked and gave, and what that took.

    hits: lookups that found something; tokens: those that were found, of
    those asked for. Reading is the faster way above the break-even.

    Example: arc-halo cache stats
    """
    from sqlalchemy import select

    from arc_halo.schema import CacheQuota, CacheStatus
    from arc_halo.schema.columns import TENANT_ID

    ours = select(CacheStatus).where(CacheStatus.tenant_id == TENANT_ID)
    bounds = select(CacheQuota).where(CacheQuota.tenant_id == TENANT_ID)
    with context.obj.connect() as database, database.session() as session:
        rows = session.scalars(ours.order_by(CacheStatus.kind, CacheStatus.namespace_id)).all()
        salted = _salted(session)
        quotas = {quota.kind: quota.max_nbytes for quota in session.scalars(bounds)}
    totals = _totals(rows)
    if json:
        print_json({"namespaces": [_status_fields(row, salted) for row in rows], "totals": totals, "quotas": quotas})
        return
    if rows:
        _print_statuses(rows, salted)
    for kind, noun in ENTRIES.items():
        if kind in totals or kind in quotas:
            total = totals.get(kind, dict.fromkeys(_SUMS, 0))
            quota = f" of {size(quotas[kind])} allowed" if kind in quotas else ""
            say((kind, "bold"), f": {count(total['entry_count'], noun)}, {size(total['stored_nbytes'])}{quota}")
    if not rows and not quotas:
        say("nothing is cached yet")


def _totals(rows: Sequence[CacheStatus]) -> dict[str, dict[str, int]]:
    kinds = dict.fromkeys(row.kind for row in rows)
    return {
        kind: {name: sum(int(getattr(row, name)) for row in rows if row.kind == kind) for name in _SUMS}
        for kind in kinds
    }


def _salted(session: Session) -> set[int]:
    """Namespaces that have a salt; what it is stays untold."""
    from sqlalchemy import select

    from arc_halo.schema import CacheNamespace
    from arc_halo.schema.columns import TENANT_ID

    ours = CacheNamespace.tenant_id == TENANT_ID
    return set(session.scalars(select(CacheNamespace.id).where(ours, CacheNamespace.salt != b"")))


def _status_fields(row: CacheStatus, salted: Container[int]) -> dict[str, Any]:
    from arc_halo.inference.usage import break_even_of

    names = [each.key for each in type(row).__mapper__.column_attrs]
    costs = break_even_of(row)
    return {name: getattr(row, name) for name in names} | {
        "has_salt": row.namespace_id in salted,
        "hit_rate": _share(row.hit_count, row.lookup_count),
        "token_hit_rate": _share(row.hit_token_count, row.asked_token_count),
        "break_even_nbytes_per_second": costs and costs.nbytes_per_second,
    }


def _share(part: int, whole: int) -> float | None:
    return part / whole if whole else None


def _print_statuses(rows: Sequence[CacheStatus], salted: Container[int]) -> None:
    lines = [
        (
            row.namespace_id,
            row.kind,
            _owner(fields),
            row.dtype if row.precision == "exact" else f"{row.dtype} as {row.precision}",
            row.block_token_count,
            "yes" if fields["has_salt"] else "no",
            row.entry_count,
            size(row.stored_nbytes),
            row.lookup_count,
            _percent(fields["hit_rate"]),
            _percent(fields["token_hit_rate"]),
            _number(row.read_nbytes_per_second, _MEGA),
            _number(row.computed_tokens_per_second or None),  # only keys and values count tokens
            _number(fields["break_even_nbytes_per_second"], _MEGA),
        )
        for row, fields in ((row, _status_fields(row, salted)) for row in rows)
    ]
    headers = ["namespace", "kind", "models", "type", "block", "salt", *_FIGURES]
    print_table(headers, lines, right=["namespace", "block", *_FIGURES])


def _owner(fields: Mapping[str, Any]) -> str:
    """Whose a namespace is; by the weights where no model here has them."""
    names = some(fields["models"]) or f"weights {fields['weights_digest'].hex()[:12]}"
    return names if fields["is_servable"] else f"{names}, retired: the next sweep deletes it"


def _percent(share: float | None) -> str:
    return "" if share is None else f"{share:.0%}"


def _number(value: float | None, unit: float = 1) -> str:
    return "" if value is None else f"{value / unit:,.4g}" if value < 1000 * unit else f"{value / unit:,.0f}"


@app.command("top")
def top(
    context: typer.Context,
    *,
    kind: Annotated[Kind, typer.Option(help="Blocks of keys and values, activations, or responses.")] = "kv",
    limit: Annotated[int, typer.Option(min=1, help="How many at most.")] = 20,
    json: Json = False,
) -> None:
    """List the entries of a cache that were given back most often.

    Example: arc-halo cache top --kind response --limit 10
    """
    from arc_halo.inference.usage import most_used

    with context.obj.connect() as database, database.session() as session:
        entries = most_used(session, kind, limit=limit)
    if json:
        print_json([asdict(entry) for entry in entries])
    elif entries:
        _print_entries(kind, entries)
    else:
        say(f"no {ENTRIES[kind]} was given back yet")


def _print_entries(kind: Kind, entries: Sequence[UsedEntry]) -> None:
    from arc_halo.cli.train.shown import moment

    what = {"kv": "first tokens", "activation": "hook point", "response": "prompt"}[kind]
    rows = [
        (entry.hit_count, moment(entry.last_hit_at), size(entry.nbytes), some(entry.models), _kept(entry), _what(entry))
        for entry in entries
    ]
    print_table(["hits", "last hit", "size", "models", "kept", what], rows, right=["hits", "size"])


def _kept(entry: UsedEntry) -> str:
    from arc_halo.cli.train.shown import moment

    return "pinned" if entry.is_pinned else f"until {moment(entry.expires_at)}" if entry.expires_at else ""


def _what(entry: UsedEntry) -> str:
    if entry.first_tokens is not None:
        more = ", ..." if (entry.token_count or 0) > len(entry.first_tokens) else ""
        return f"block {entry.position}: {', '.join(map(str, entry.first_tokens))}{more}"
    text = entry.hook_point or entry.prompt or ""
    return text if len(text) <= _PROMPT_LENGTH else f"{text[:_PROMPT_LENGTH]}..."


@app.command("audits")
def audits(
    context: typer.Context,
    *,
    kind: Annotated[Kind | None, typer.Option(help="Of this cache alone.")] = None,
    limit: Annotated[int, typer.Option(min=1, help="How many at most.")] = 20,
    json: Json = False,
) -> None:
    """List what was found in the caches and not served, and why, the newest first.

    Example: arc-halo cache audits
    """
    from sqlalchemy import select

    from arc_halo.schema import CacheAudit
    from arc_halo.schema.columns import TENANT_ID

    ours = select(CacheAudit).where(CacheAudit.tenant_id == TENANT_ID)
    newest = ours.order_by(CacheAudit.occurred_at.desc(), CacheAudit.id.desc()).limit(limit)
    with context.obj.connect() as database, database.session() as session:
        rows = session.scalars(newest if kind is None else newest.where(CacheAudit.kind == kind)).all()
    if json:
        names = [each.key for each in CacheAudit.__mapper__.column_attrs]
        print_json([{name: getattr(row, name) for name in names} for row in rows])
    elif rows:
        _print_audits(rows)
    else:
        say("nothing that was found was refused")


def _print_audits(rows: Sequence[CacheAudit]) -> None:
    from arc_halo.cli.train.shown import moment

    print_table(
        ["when", "kind", "namespace", "reason", "details"],
        [
            (
                moment(row.occurred_at),
                row.kind,
                row.namespace_id,
                row.reason.replace("_", " "),
                ", ".join(f"{name} {_detail(value)}" for name, value in row.details.items()),
            )
            for row in rows
        ],
        right=["namespace"],
    )


def _detail(value: object) -> str:
    return shown(value) if isinstance(value, str | int) else json_text.dumps(value)
