"""A prompt answered by a model, with what is stored of it."""

# ruff: noqa: PLC0415  (commands import what is heavy when they run, so that --help is fast)

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from arc_halo.cli.infer.application import app
from arc_halo.cli.output import Json, console, count, print_json, shown

if TYPE_CHECKING:
    from arc_halo.integrations.transformers_answers import Answer


@app.command("generate")
def generate(
    context: typer.Context,
    model: Annotated[str, typer.Argument(metavar="MODEL", help="NAME (its newest version), NAME@VERSION, NAME@ALIAS.")],
    *,
    prompt: Annotated[str | None, typer.Option(help="The text to go on from; - reads it from stdin.")] = None,
    tokens: Annotated[
        str | None, typer.Option(metavar="IDS", help="Token ids in its place, for a model without a tokenizer: 1,15,7.")
    ] = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, metavar="COUNT", help="Tokens to add at most.")] = 64,
    temperature: Annotated[float, typer.Option(min=0, help="0 takes the likeliest token each time.")] = 0.0,
    seed: Annotated[int | None, typer.Option(help="Of what is drawn: equal ones give equal answers.")] = None,
    cache: Annotated[
        bool, typer.Option("--cache/--no-cache", help="Read stored keys and values of the prompt, and store them.")
    ] = True,
    unlogged: Annotated[
        bool, typer.Option("--unlogged", help="Store them faster; a crash of the server empties that table.")
    ] = False,
    codec: Annotated[Literal["none", "lossless", "int8"], typer.Option(help="How to store them.")] = "none",
    block_tokens: Annotated[int, typer.Option(min=1, max=512, metavar="COUNT", help="Tokens of a block.")] = 256,
    dequantize: Annotated[bool, typer.Option("--dequantize", help="Let a quantised model's floats answer.")] = False,
    json: Json = False,
) -> None:
    """Let a model go on from a prompt, with what the database has of the prompt's keys and values.

    The answer is on stdout as it comes; on stderr, what it took. It is
    recorded: arc-halo infer sessions lists it. What reading saves is measured
    once 32 tokens of a prompt or more were computed, and stored ones read.

    Example: arc-halo infer generate demo --prompt "The first"
    """
    from arc_halo.cli.extras import require_transformers

    asked = _asked(prompt, tokens)
    require_transformers("models are run")
    from transformers.utils import logging

    from arc_halo.integrations.transformers_answers import CacheOptions, answer_prompt

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    with context.obj.connect() as database:
        answer = answer_prompt(
            database,
            model,
            asked,
            max_new_tokens=max_new_tokens,
            temperature=temperature,
            seed=seed,
            cache=CacheOptions(block_tokens, codec, logged=not unlogged) if cache else None,
            dequantize=dequantize,
            show=None if json else _show,
        )
    if json:
        print_json(_fields(answer))
    else:
        sys.stdout.write("\n")
        sys.stdout.flush()
        console(stderr=True).print(_took(answer), soft_wrap=True)


def _asked(prompt: str | None, tokens: str | None) -> str | list[int]:
    """The text or the ids to go on from; of what is piped the last end of a line is not part of the text."""
    from arc_halo.cli.cache.application import parse_tokens

    if prompt is not None and tokens is not None:
        raise typer.BadParameter("give --prompt or --tokens, not both")
    if prompt is not None:
        return sys.stdin.read().removesuffix("\n") if prompt == "-" else prompt
    if tokens is None:
        raise typer.BadParameter("give --prompt, or --tokens")
    return parse_tokens([tokens], "--prompt")


def _show(text: str) -> None:
    """Write a part of an answer; what could steer a terminal is escaped."""
    lines = text.split("\n")
    sys.stdout.write("\n".join(shown(line) for line in lines))
    sys.stdout.flush()


def _took(answer: Answer) -> str:
    made, rate = answer.generated, answer.tokens_per_second
    parts = [
        f"{count(made.prompt_token_count, 'token')} of the prompt, {made.hit_token_count:,} from the cache",
        f"first token after {_seconds(made.first_token_seconds)}",
        f"{count(answer.new_token_count, 'token')} generated" + ("" if rate is None else f" at {rate:,.1f} tokens/s"),
    ]
    if answer.break_even is not None:
        parts += [_saved(made.seconds_saved)] if made.hit_token_count else []
        parts += [str(answer.break_even)]
    return "; ".join(parts)


def _saved(seconds: float | None) -> str:
    if seconds is None:
        return "time saved not measured yet"
    return f"{_seconds(seconds)} saved" if seconds >= 0 else f"{_seconds(-seconds)} lost by reading"


def _seconds(value: float) -> str:
    return f"{value:.3g} s" if abs(value) >= 1 else f"{value * 1000:.3g} ms"


def _fields(answer: Answer) -> dict[str, Any]:
    made, costs = answer.generated, answer.break_even
    return {
        "model": answer.model,
        "session_id": answer.session_id,
        "text": answer.text,
        "tokens": made.new_tokens.tolist(),
        "prompt_token_count": made.prompt_token_count,
        "cached_token_count": made.hit_token_count,
        "time_to_first_token_seconds": made.first_token_seconds,
        "seconds": made.seconds,
        "tokens_per_second": answer.tokens_per_second,
        "seconds_saved": made.seconds_saved,
        "break_even_nbytes_per_second": costs and costs.nbytes_per_second,
        "read_nbytes_per_second": costs and costs.read_nbytes_per_second,
    }
