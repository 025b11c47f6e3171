"""What is asked in JSON, and what an answer in JSON says."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Final

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from arc_halo.errors import MemberError
from arc_halo.fusion.members.generating import cut_at_stop
from arc_halo.fusion.members.protocol import Answer, TokenChoice

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from arc_halo.fusion.members.protocol import Question
    from arc_halo.integrations.openai_endpoints.settings import EndpointSettings

_MAX_STOPS: Final = 4  # that OpenAI takes; of more the rest is cut here
_MAX_TOP: Final = {"chat": 20, "completions": 5}
_MAX_COUNT: Final = 2**31 - 1  # of the column

Count = Annotated[int, Field(ge=0, le=_MAX_COUNT)]
LogProbability = Annotated[float, Field(le=0.01, allow_inf_nan=False)]  # some round upwards


class _Part(BaseModel):
    model_config = ConfigDict(extra="ignore", strict=True, hide_input_in_errors=True)


class _PromptDetails(_Part):
    cached_tokens: Count | None = None


class _Usage(_Part):
    prompt_tokens: Count | None = None
    completion_tokens: Count | None = None
    prompt_tokens_details: _PromptDetails | None = None


class _Top(_Part):
    token: str
    logprob: LogProbability


class _Token(_Top):
    top_logprobs: list[_Top] | None = None


class _LogProbabilities(_Part):
    content: list[_Token] | None = None
    # As plain completions have them.
    tokens: list[str] | None = None
    token_logprobs: list[LogProbability | None] | None = None
    top_logprobs: list[dict[str, LogProbability] | None] | None = None


class _Message(_Part):
    content: str | None = None
    refusal: str | None = None


class _Choice(_Part):
    message: _Message | None = None
    text: str | None = None
    finish_reason: str | None = None
    logprobs: _LogProbabilities | None = None


class _Reply(_Part):
    choices: Annotated[list[_Choice], Field(min_length=1)]
    model: str | None = None
    usage: _Usage | None = None


def request_of(endpoint: EndpointSettings, question: Question) -> dict[str, Any]:
    """The body of a request, as values of JSON."""
    body: dict[str, Any] = {
        "model": endpoint.model,
        endpoint.limit: question.max_tokens,
        "temperature": question.temperature,
    }
    if question.seed is not None:
        body["seed"] = question.seed
    if question.stop:
        body["stop"] = list(question.stop[:_MAX_STOPS])
    system = () if question.system is None else (question.system,)
    if endpoint.kind == "chat":
        told = [{"role": "system", "content": each} for each in system]
        body["messages"] = [*told, {"role": "user", "content": question.prompt}]
    else:
        body["prompt"] = "\n\n".join((*system, question.prompt))
    if endpoint.logprobs:
        top_count = min(question.top_count, _MAX_TOP[endpoint.kind])
        # At least one: some servers take 0 for no.
        body |= (
            {"logprobs": True, "top_logprobs": top_count}
            if endpoint.kind == "chat"
            else {"logprobs": max(1, top_count)}
        )
    return body


def answer_of(endpoint: EndpointSettings, question: Question, body: bytes) -> Answer:
    """What an answer says.

    Raises
    ------
    MemberError
        It is no JSON, not of the form that it must have, or holds no text.
    """
    reply = _parsed(body)
    first = reply.choices[0]
    text = first.text if first.message is None else first.message.content
    if text is None:
        refusal = first.message.refusal if first.message is not None else None
        raise MemberError(f"it gave no text{f' and said: {refusal[:200]}' if refusal else ''}")
    choices = _choices(first.logprobs, question.top_count) if first.logprobs is not None else ()
    reason = first.finish_reason or "stop"
    if (cut := cut_at_stop(text, question.stop)) is not None:
        text, reason, choices = cut, "stop", _within(choices, len(cut))
    if "\0" in text or any("\0" in each.text or any("\0" in other for other in each.top) for each in choices):
        raise MemberError("its answer holds the character NUL, which no text of the database can")
    usage = reply.usage or _Usage()
    cached = usage.prompt_tokens_details
    generated = usage.completion_tokens
    if generated is None and choices:
        generated = len(choices)
    details = {"model": reply.model and reply.model[:200].replace("\0", "")}
    if reason not in ("stop", "length"):
        details["finish_reason"] = reason[:200].replace("\0", "")
    return Answer(
        text,
        choices,
        "length" if reason == "length" else "stop",
        prompt_token_count=usage.prompt_tokens,
        generated_token_count=generated,
        cached_token_count=None if cached is None else cached.cached_tokens,
        cost=_cost(endpoint, usage),
        details={name: value for name, value in details.items() if value},
    )


def _parsed(body: bytes) -> _Reply:
    try:
        return _Reply.model_validate_json(body)
    except ValidationError as error:
        faults = error.errors(include_url=False, include_input=False)
        said = "; ".join(": ".join(filter(None, (".".join(map(str, each["loc"])), each["msg"]))) for each in faults[:3])
    raise MemberError(f"its answer cannot be read: {said[:500]}")


def _cost(endpoint: EndpointSettings, usage: _Usage) -> float | None:
    counted = ((usage.prompt_tokens, endpoint.prompt_price), (usage.completion_tokens, endpoint.answer_price))
    priced = [(count, price) for count, price in counted if price is not None]
    if not priced or any(count is None for count, _ in priced):
        return None
    return sum((count or 0) * price for count, price in priced) / 1_000_000


def _choices(given: _LogProbabilities, top_count: int) -> tuple[TokenChoice, ...]:
    if given.content is not None:
        return tuple(
            _choice(each.token, each.logprob, [(top.token, top.logprob) for top in each.top_logprobs or ()], top_count)
            for each in given.content
        )
    tokens, scores = given.tokens or [], given.token_logprobs or []
    top = given.top_logprobs or [None] * len(tokens)
    if not len(tokens) == len(scores) == len(top):
        raise MemberError(
            f"it gave {len(scores)} log-probabilities and {len(top)} alternatives of {len(tokens)} tokens"
        )
    return tuple(
        # A token without one is the first of an echoed prompt: not asked for, not counted.
        _choice(token, score, list((others or {}).items()), top_count)
        for token, score, others in zip(tokens, scores, top, strict=True)
        if score is not None
    )


def _choice(text: str, score: float, top: Sequence[tuple[str, float]], top_count: int) -> TokenChoice:
    best: Mapping[str, float] = {}
    if top_count:
        # Of several tokens with one text the best counts.
        ordered = sorted(top, key=lambda each: -each[1])
        best = {other: min(0.0, value) for other, value in reversed(ordered[:top_count])}
        best = dict(sorted(best.items(), key=lambda each: -each[1]))
    return TokenChoice(text, min(0.0, score), best)


def _within(choices: tuple[TokenChoice, ...], length: int) -> tuple[TokenChoice, ...]:
    """The tokens of the first characters."""
    kept = []
    for choice in choices:
        length -= len(choice.text)
        if length < 0:
            break
        kept.append(choice)
    return tuple(kept)
