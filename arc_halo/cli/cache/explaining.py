"""Why a prompt hits or misses, block by block."""

# ruff: noqa: PLC0415  (commands import what is heavy when they run, so that --help is fast)

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import typer  # noqa: TC002  Typer evaluates the annotations

from arc_halo.cli.cache.application import OfModel, Text, Tokens, app, token_ids
from arc_halo.cli.output import Json, count, print_json, print_table, say, shown, size

if TYPE_CHECKING:
    from arc_halo.inference.kv.explaining import ExplainedBlock, ExplainedPrefix, PrefixEnd

_ENDS: Final[dict[PrefixEnd, str]] = {
    "complete": "all of it is stored",
    "nothing_after": "nothing is stored behind it",
    "other_tokens": "other tokens are stored behind it",
    "expired": "what follows has expired",
    "payloads_gone": "the payloads that follow are gone: unlogged, and the server crashed",
    "damaged": "the row that follows is not what was stored",
    "retired": "nothing is served: the version is archived",
}
_HASH_LENGTH: Final = 12


@app.command("explain")
def explain(
    context: typer.Context, tokens: Tokens = None, *, model: OfModel, text: Text = None, json: Json = False
) -> None:
    """Say of each block of a prompt whether its keys and values are stored, and why they end where they do.

    tokens: those of the stored block, or those of the prompt where none is
    stored. "1 of these 16 used": the prompt ends or differs after the first.

    For each namespace of the model's weights: a live model asks in the one
    of its own config, tokenizer, types and size of blocks.

    Example: arc-halo cache explain 1,15,7 --model demo
    """
    from arc_halo.inference.kv.explaining import explain_prefix

    with context.obj.connect() as database, database.session() as session:
        asked = token_ids(session, model, tokens, text)
        explained = explain_prefix(session, model, asked)
    if json:
        print_json([_fields(each) for each in explained])
        return
    for prefix in explained:
        _print(prefix)
    if not explained:
        say(f"no keys and values are stored for the weights of {shown(model)}")


def _print(prefix: ExplainedPrefix) -> None:
    from arc_halo.cli.train.shown import moment

    of = prefix.namespace
    kept = (
        f"{of.dtype}, {of.precision}, blocks of {of.block_token_count}, config {of.config_digest.hex()[:_HASH_LENGTH]}"
    )
    tokenizer = "" if of.tokenizer_digest is None else f", tokenizer {of.tokenizer_digest.hex()[:_HASH_LENGTH]}"
    say((f"namespace {prefix.namespace_id}", "bold"), f": {kept}{tokenizer}")
    rows = []
    for block in prefix.blocks:
        stored = block.stored
        last = block.first_token + (block.token_count if stored is None else stored.token_count) - 1
        rows.append(
            (
                block.position,
                f"{block.first_token:,}-{last:,}",
                block.block_hash.hex()[:_HASH_LENGTH],
                _state(block),
                "" if stored is None else "logged" if stored.is_logged else "unlogged",
                "" if stored is None else "pinned" if stored.is_pinned else moment(stored.expires_at) or "never",
                "" if stored is None else size(stored.stored_nbytes),
                None if stored is None else stored.hit_count,
            )
        )
    right = ("block", "tokens", "size", "hits")
    print_table(["block", "tokens", "hash", "stored", "how", "expires", "size", "hits"], rows, right=right)
    say(
        f"{prefix.hit_token_count:,} of {count(prefix.asked_token_count, 'token')}: {_ENDS[prefix.end]}{_other(prefix)}"
    )


def _state(block: ExplainedBlock) -> str:
    if block.stored is None:
        return "no"
    if block.used_token_count:
        whole = block.used_token_count == block.stored.token_count
        return "used" if whole else f"{block.used_token_count} of these {block.stored.token_count} used"
    if block.stored.is_expired:
        return "expired"
    return "not used" if block.stored.has_payloads else "without payloads"


def _other(prefix: ExplainedPrefix) -> str:
    """Which token is stored where another one was asked for."""
    from arc_halo.inference.kv.hashing import unpack_tokens

    last = next((block for block in reversed(prefix.blocks) if block.used_token_count), None)
    if prefix.end != "other_tokens" or last is None or last.stored is None:
        return ""
    if last.used_token_count == last.stored.token_count:
        return ""
    return f", such as {unpack_tokens(last.stored.token_ids)[last.used_token_count]} at {prefix.hit_token_count:,}"


def _fields(prefix: ExplainedPrefix) -> dict[str, Any]:
    names = ("kind", "dtype", "precision", "block_token_count", "config_digest", "tokenizer_digest", "adapter_digest")
    return {
        "namespace_id": prefix.namespace_id,
        **{name: getattr(prefix.namespace, name) for name in names},
        "digest": prefix.namespace.digest,
        "asked_token_count": prefix.asked_token_count,
        "hit_token_count": prefix.hit_token_count,
        "end": prefix.end,
        "blocks": [_block_fields(block) for block in prefix.blocks],
    }


def _block_fields(block: ExplainedBlock) -> dict[str, Any]:
    from arc_halo.inference.kv.hashing import unpack_tokens

    own = {name: getattr(block, name) for name in block.__dataclass_fields__ if name != "stored"}
    if block.stored is None:
        return own | {"stored": None}
    stored = {name: getattr(block.stored, name) for name in block.stored.__dataclass_fields__}
    return own | {"stored": stored | {"token_ids": unpack_tokens(block.stored.token_ids).tolist()}}
