"""Prefixes that stay, and how much room there is for the others."""

# ruff: noqa: PLC0415  (commands import what is heavy when they run, so that --help is fast)

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Annotated, Final

import typer

from arc_halo.cli.cache.application import Kind, OfModel, Text, Tokens, app, token_ids
from arc_halo.cli.output import Json, count, print_json, say, shown, size

if TYPE_CHECKING:
    from sqlalchemy.orm import Session

_NONE: Final = -1
_NBYTES: Final = re.compile(r"([0-9]+) ?(|[kMGT]?B)")
_UNITS: Final = {"": 1, "B": 1, "kB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}


def room(text: str) -> int:
    """``20000000``, ``20MB``, or ``none``."""
    if text == "none":
        return _NONE
    matched = _NBYTES.fullmatch(text)
    if matched is None:
        raise typer.BadParameter(f"{text!r} is no number of bytes: write 20000000, 20MB, 20GB or none")
    return int(matched[1]) * _UNITS[matched[2]]


@app.command("pin")
def pin(
    context: typer.Context,
    tokens: Tokens = None,
    *,
    model: OfModel,
    text: Text = None,
    unpin: Annotated[bool, typer.Option("--unpin", help="Let it go again.")] = False,
    json: Json = False,
) -> None:
    """Keep the stored keys and values of a prefix, whatever their time and the quota say.

    It is pinned wherever something of it is stored for the weights of the
    model: with each tokenizer, config, type and size of blocks.

    Example: arc-halo cache pin 1,15,7 --model demo
    """
    from arc_halo.errors import CacheError
    from arc_halo.inference.kv.keeping import pin_prefix
    from arc_halo.inference.namespaces import stored_namespaces

    with context.obj.connect() as database, database.session() as session:
        asked = token_ids(session, model, tokens, text)
        found = [
            {"namespace_id": number, "token_count": pin_prefix(session, namespace, asked, pinned=not unpin)}
            for number, namespace in stored_namespaces(session, model, "kv").items()
        ]
        longest = max((each["token_count"] for each in found), default=0)
        if not longest and not unpin:
            raise CacheError(f"nothing of these {count(len(asked), 'token')} is stored for {model}; store it first")
        session.commit()
    if json:
        print_json({"pinned": not unpin, "asked_token_count": len(asked), "namespaces": found})
    else:
        did = "unpinned, but for what a pinned block stands behind:" if unpin else "pinned"
        say(f"{did} {longest:,} of {count(len(asked), 'token')} of {shown(model)}")


@app.command("quota")
def quota(
    context: typer.Context,
    kind: Annotated[Kind, typer.Argument(metavar="KIND", help="kv, activation or response.")],
    nbytes: Annotated[
        int | None,
        typer.Argument(
            parser=room,
            metavar="[BYTES]",
            show_default=False,
            help="20000000, 20MB, 20GB; none for no bound. Without it the quota is shown.",
        ),
    ] = None,
    *,
    json: Json = False,
) -> None:
    """Bound the bytes that a cache may keep; what is beyond goes with the next sweep, the least used first.

    Without BYTES it says which bound there is.

    Example: arc-halo cache quota kv 20GB
    """
    from arc_halo.inference.kv.keeping import set_quota

    bound = None if nbytes == _NONE else nbytes
    with context.obj.connect() as database:
        if nbytes is None:
            bound = database.transaction(lambda session: _quota_of(session, kind))
        else:
            database.transaction(lambda session: set_quota(session, kind, bound))
    if json:
        print_json({"kind": kind, "max_nbytes": bound})
    else:
        say(f"{kind}: " + ("no bound" if bound is None else f"at most {size(bound)}"))


def _quota_of(session: Session, kind: Kind) -> int | None:
    from sqlalchemy import select

    from arc_halo.schema import CacheQuota
    from arc_halo.schema.columns import TENANT_ID

    of_kind = CacheQuota.tenant_id == TENANT_ID, CacheQuota.kind == kind
    return session.scalar(select(CacheQuota.max_nbytes).where(*of_kind))
