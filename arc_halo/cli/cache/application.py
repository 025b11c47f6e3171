"""The noun ``cache``, which the files beside this one give its verbs."""

# ruff: noqa: PLC0415  (commands import what is heavy when they run, so that --help is fast)

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Annotated, Final, Literal

import typer

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sqlalchemy.orm import Session

app = typer.Typer(
    no_args_is_help=True,
    help="Keys and values, activations, responses: what they give, why a prompt misses, what is kept.",
)

Kind = Literal["kv", "activation", "response"]
ENTRIES: Final[dict[Kind, str]] = {"kv": "block", "activation": "activation", "response": "response"}
"""What is kept in each cache."""

_MODEL_HELP: Final = "NAME (its newest version), NAME@VERSION or NAME@ALIAS."
OfModel = Annotated[str, typer.Option("--model", metavar="MODEL", help=_MODEL_HELP)]
Tokens = Annotated[
    list[str] | None,
    typer.Argument(metavar="TOKENS...", help="Token ids, with commas or blanks between.", show_default=False),
]
Text = Annotated[
    str | None,
    typer.Option("--text", metavar="TEXT", help="Text in the place of TOKENS, read by the model's own tokenizer."),
]


def token_ids(session: Session, model: str, words: Sequence[str] | None, text: str | None) -> list[int]:
    """The tokens that were typed, or those of a text.

    Raises
    ------
    ConfigurationError
        A text was given, and its tokenizer cannot be loaded.
    """
    if bool(words) == (text is not None):
        raise typer.BadParameter("give TOKENS, or a text by --text")
    if text is None:
        return parse_tokens(words or ())
    from arc_halo.cli.extras import require_transformers

    require_transformers("texts become tokens")
    from arc_halo.integrations.transformers_models import load_tokenizer

    return [int(token) for token in load_tokenizer(session, model)(text).input_ids]


def parse_tokens(words: Sequence[str], text_option: str = "--text") -> list[int]:
    """``1,2 3`` as numbers; ``text_option`` is the one for a text in their place."""
    split = [word for word in re.split(r"[,\s]+", " ".join(words)) if word]
    for word in split:
        if not word.isascii() or not word.isdigit():
            raise typer.BadParameter(f"{word!r} is no token id; write 1,2,3 or use {text_option}")
    return [int(word) for word in split]
