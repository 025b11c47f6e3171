"""Answers of members that give logits: one token after another."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import numpy as np

from arc_halo.errors import MemberError, MemberTimeout
from arc_halo.fusion.members.protocol import Answer, TokenChoice

if TYPE_CHECKING:
    from collections.abc import Callable

    from arc_halo.fusion.members.protocol import Predicting, Question


def generate(
    member: Predicting,
    question: Question,
    *,
    deadline: float | None = None,
    is_wanted: Callable[[], bool] = lambda: True,
) -> Answer:
    """Continue the prompt of a question, greedily or, at a temperature, by its seed.

    Parameters
    ----------
    deadline
        By `time.monotonic`.
    is_wanted
        Asked before each token: False ends the answer as a timeout does.

    Raises
    ------
    MemberTimeout
        Nobody waits for the answer any more.
    MemberError
        The member gives logits of another shape than its vocabulary, or such that are not numbers.
    """
    token_ids = member.encode(whole_prompt(question))
    prompt_count = len(token_ids)
    random = np.random.default_rng(question.seed)
    choices: list[TokenChoice] = []
    finish, text = "length", ""
    while len(choices) < question.max_tokens:
        if not is_wanted() or (deadline is not None and time.monotonic() > deadline):
            raise MemberTimeout(f"stopped after {len(choices)} tokens")
        logits = checked_logits(member, member.next_logits(token_ids))
        chosen = choose(logits, question.temperature, random)
        if chosen in member.end_ids:
            finish = "stop"
            break
        choices.append(choice_of(member, logits, chosen, question.top_count))
        token_ids.append(chosen)
        text = member.decode(token_ids[prompt_count:])
        if (stopped := cut_at_stop(text, question.stop)) is not None:
            finish, text = "stop", stopped
            break
    return Answer(text, tuple(choices), finish, prompt_token_count=prompt_count, generated_token_count=len(choices))


def whole_prompt(question: Question) -> str:
    """What a member continues that has no place of its own for what is said beforehand."""
    return question.prompt if question.system is None else f"{question.system}\n\n{question.prompt}"


def checked_logits(member: Predicting, logits: np.ndarray) -> np.ndarray:
    """Logits as they must be: float32, one for each token of the vocabulary; minus infinity is allowed, NaN is not."""
    array = np.asarray(logits, dtype=np.float32)
    if array.shape != (len(member.vocabulary),):
        raise MemberError(f"it gave logits of shape {list(array.shape)} for {len(member.vocabulary)} tokens")
    if np.isnan(array).any() or not np.isfinite(array.max()):
        raise MemberError("it gave logits that are no numbers")
    return array


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """Log-probabilities of logits along the last axis; float32 stays float32."""
    shifted: np.ndarray = logits - logits.max(axis=-1, keepdims=True)
    shifted -= np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    return shifted


def choose(logits: np.ndarray, temperature: float, random: np.random.Generator) -> int:
    """A token: the most probable one (the first of equals) at temperature 0, else drawn."""
    if temperature == 0:
        return int(logits.argmax())
    return int(random.choice(len(logits), p=probabilities_at(logits, temperature)))


def probabilities_at(logits: np.ndarray, temperature: float) -> np.ndarray:
    """Probabilities of logits at a temperature above 0, float64 of the same shape [tokens]."""
    shifted = logits.astype(np.float64) - float(logits.max())
    with np.errstate(over="ignore"):  # minus infinity is the limit near temperature 0
        powers: np.ndarray = np.exp(shifted / temperature)
    powers /= powers.sum()
    return powers


def choice_of(member: Predicting, logits: np.ndarray, chosen: int, top_count: int) -> TokenChoice:
    """A token with its log-probability at temperature 1, and its best alternatives."""
    scores = log_softmax(logits)
    count = min(top_count, len(scores))
    best = np.argpartition(scores, -count)[-count:] if count else np.empty(0, np.intp)
    ordered = best[np.argsort(-scores[best], kind="stable")]
    vocabulary = member.vocabulary
    top: dict[str, float] = {}
    for each in ordered:
        top.setdefault(vocabulary[int(each)], float(scores[each]))  # of several tokens with one text the best counts
    return TokenChoice(vocabulary[chosen], float(scores[chosen]), top)


def cut_at_stop(text: str, stop: tuple[str, ...]) -> str | None:
    """A text up to the first of the texts that end it; None if none of them is in it."""
    found = [at for each in stop if each and (at := text.find(each)) >= 0]
    return text[: min(found)] if found else None
