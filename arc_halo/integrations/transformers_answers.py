"""Prompts answered by models out of the database, with what is stored of them; the extra ``transformers``."""

from __future__ import annotations

import time
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import torch
import transformers
from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, MODEL_FOR_MASKED_LM_MAPPING, AutoModelForCausalLM, TextStreamer
from transformers.generation.streamers import BaseStreamer
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from arc_halo.errors import ConfigurationError, StateMismatch
from arc_halo.inference.figures import token_rate
from arc_halo.inference.sessions import inference_session
from arc_halo.integrations.transformers_cache import DEFAULT_BLOCK_TOKENS, Generated, ModelCache
from arc_halo.integrations.transformers_first_token import FirstToken
from arc_halo.integrations.transformers_models import load_pretrained, load_tokenizer
from arc_halo.registry import find_model

if TYPE_CHECKING:
    import uuid
    from collections.abc import Callable, Iterator, Sequence

    from sqlalchemy.orm import Session
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from arc_halo.database import Database
    from arc_halo.inference.kv import BreakEven
    from arc_halo.inference.kv.types import CodecName
    from arc_halo.schema import Model

MAX_NEW_TOKENS: Final = 64
_NO_DECODER: Final = "{} is not a decoder: it has no head to generate text with"


@dataclass(frozen=True, slots=True)
class CacheOptions:
    """How keys and values are kept, as `ModelCache` takes it."""

    block_token_count: int = DEFAULT_BLOCK_TOKENS
    codec: CodecName = "none"
    logged: bool = True


@dataclass(frozen=True, slots=True)
class Answer:
    """What a model said, and what it took.

    Parameters
    ----------
    model
        ``name@version``.
    text
        None for a model without a tokenizer.
    break_even
        As measured so far; None without a cache.
    session_id
        Of the inference session it is recorded as.
    """

    model: str
    text: str | None
    generated: Generated
    break_even: BreakEven | None
    session_id: uuid.UUID

    @property
    def new_token_count(self) -> int:
        """Tokens of the answer."""
        return len(self.generated.new_tokens)

    @property
    def tokens_per_second(self) -> float | None:
        """Of the answer, after its first token."""
        return token_rate(self.new_token_count, self.generated.seconds, self.generated.first_token_seconds)


def answer_prompt(
    db: Database,
    model: Model | uuid.UUID | str,
    prompt: str | Sequence[int],
    *,
    max_new_tokens: int = MAX_NEW_TOKENS,
    temperature: float = 0.0,
    seed: int | None = None,
    cache: CacheOptions | None = None,
    dequantize: bool = False,
    show: Callable[[str], None] | None = None,
) -> Answer:
    """Load a model and its tokenizer, answer one prompt, and record that as an inference session.

    Parameters
    ----------
    prompt
        A text, or token ids.
    temperature
        0 takes the likeliest token each time.
    seed
        Equal ones draw equal answers; by default each is another.
    cache
        How to keep the prompt's keys and values; None to compute all of them, and keep none.
    dequantize
        Let a quantised model's floats answer.
    show
        Called with each part of the answer as it comes: words, or the ids of a model without a tokenizer.

    Raises
    ------
    ModelNotFound
        There is no such model.
    ConfigurationError
        It is none that generates text, has no tokenizer for a text, or the prompt does not fit into it.
    QuantizationError
        It is quantised and ``dequantize`` was not said.
    UnknownCacheLayer
        Its keys and values cannot be cached.

    Examples
    --------
    >>> answer_prompt(db, "lm@production", "Once upon", cache=CacheOptions()).text  # doctest: +SKIP
    """
    with db.session() as session:
        found = find_model(session, model)
        name = f"{found.name}@{found.version}"
        _refuse_encoder(found, name)
        tokenizer = _tokenizer(session, found, is_needed=isinstance(prompt, str))
        module = _load(session, found, name, dequantize=dequantize)
        model_id = found.id
    token_ids = _token_ids(tokenizer, prompt)
    _check_fits(module, name, token_ids, max_new_tokens)
    options = _options(module, max_new_tokens, temperature) | {"streamer": _streamer(tokenizer, show)}
    settings = {"max_new_tokens": max_new_tokens, "temperature": temperature, "seed": seed, "cache": cache is not None}
    with inference_session(db, model_id, config=settings) as inference:
        with _seeded(seed):
            generated, break_even = _generate(db, module, tokenizer, token_ids, options, cache=cache)
        inference.record(
            generated.seconds,
            time_to_first_token_seconds=generated.first_token_seconds,
            prompt_token_count=generated.prompt_token_count,
            generated_token_count=len(generated.new_tokens),
            cached_token_count=generated.hit_token_count,
        )
    text = None if tokenizer is None else str(tokenizer.decode(generated.new_tokens, skip_special_tokens=True))
    return Answer(name, text, generated, break_even, inference.id)


def _refuse_encoder(model: Model, name: str) -> None:
    """Refuse what never generates before it is loaded. What is of no known type is left to `load_pretrained`."""
    config, kind = model.architecture_config, model.architecture_config.get("model_type")
    if not isinstance(kind, str) or kind not in CONFIG_MAPPING or _names_generator(model):
        return
    of_kind = CONFIG_MAPPING[kind]
    is_encoder = of_kind in MODEL_FOR_MASKED_LM_MAPPING and not config.get("is_decoder")
    if is_encoder or of_kind not in MODEL_FOR_CAUSAL_LM_MAPPING:
        raise ConfigurationError(_NO_DECODER.format(name))


def _load(session: Session, model: Model, name: str, *, dequantize: bool) -> PreTrainedModel:
    try:
        return load_pretrained(session, model, auto_class=AutoModelForCausalLM, dequantize=dequantize)
    except StateMismatch as error:
        if _names_generator(model):
            raise
        raise ConfigurationError(_NO_DECODER.format(name)) from error


def _names_generator(model: Model) -> bool:
    """Whether the class that the config names has a head to generate text with; one without may have a tied head."""
    named = model.architecture_config.get("architectures")
    found: Any = getattr(transformers, str(named[0]), None) if isinstance(named, list) and named else None
    can_generate = getattr(found, "can_generate", None)
    return can_generate is not None and bool(can_generate())


def _tokenizer(session: Session, model: Model, *, is_needed: bool) -> PreTrainedTokenizerBase | None:
    try:
        return load_tokenizer(session, model)
    except ConfigurationError:
        if is_needed:
            raise
        return None


def _token_ids(tokenizer: PreTrainedTokenizerBase | None, prompt: str | Sequence[int]) -> torch.Tensor:
    """The prompt, int64 of shape [1, tokens]."""
    row = list(prompt) if not isinstance(prompt, str) or tokenizer is None else tokenizer(prompt).input_ids
    if not row:
        raise ConfigurationError("the prompt has no tokens, and a model goes on from at least one")
    return torch.tensor([row], dtype=torch.long)


def _check_fits(module: PreTrainedModel, name: str, token_ids: torch.Tensor, max_new_tokens: int) -> None:
    words, largest = int(module.get_input_embeddings().num_embeddings), int(token_ids.max())
    if largest >= words:
        raise ConfigurationError(f"{name} knows the tokens from 0 to {words - 1}, and the prompt has {largest}")
    places, count = getattr(module.config, "max_position_embeddings", None), token_ids.shape[1]
    if places is not None and count + max_new_tokens > places:
        raise ConfigurationError(
            f"{name} has {places} positions: a prompt of {count} tokens and {max_new_tokens} new ones are too many"
        )


def _options(module: PreTrainedModel, max_new_tokens: int, temperature: float) -> dict[str, Any]:
    options: dict[str, Any] = {"max_new_tokens": max_new_tokens, "do_sample": temperature > 0}
    if temperature > 0:
        options["temperature"] = temperature
    config = module.generation_config
    if config is not None and config.pad_token_id is None:
        options["pad_token_id"] = 0  # of one row nothing is padded; transformers warns where none is given
    return options


def _generate(
    db: Database,
    module: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase | None,
    token_ids: torch.Tensor,
    options: dict[str, Any],
    *,
    cache: CacheOptions | None,
) -> tuple[Generated, BreakEven | None]:
    options["attention_mask"] = torch.ones_like(token_ids)
    if cache is None:
        return _compute(module, token_ids, options), None
    with ModelCache(
        db,
        module,
        tokenizer=tokenizer,
        block_token_count=cache.block_token_count,
        codec=cache.codec,
        logged=cache.logged,
        changes="versions",  # it was just loaded, and nobody but us has it
    ) as kept:
        return kept.generate(token_ids, **options), kept.break_even


def _compute(module: PreTrainedModel, token_ids: torch.Tensor, options: dict[str, Any]) -> Generated:
    """As `ModelCache.generate`, without one."""
    begun = time.perf_counter()
    first = FirstToken(options.pop("streamer"))
    with torch.inference_mode():
        sequences = module.generate(token_ids, streamer=first, **options)
    ended = time.perf_counter()
    return Generated(sequences, token_ids.shape[1], 0, (first.at or ended) - begun, ended - begun, None)


@contextmanager
def _seeded(seed: int | None) -> Iterator[None]:
    if seed is None:
        yield
        return
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        yield


def _streamer(tokenizer: PreTrainedTokenizerBase | None, show: Callable[[str], None] | None) -> BaseStreamer | None:
    if show is None:
        return None
    return _Ids(show) if tokenizer is None else _Words(tokenizer, show)


class _Words(TextStreamer):
    """Hands on words as soon as no later token can change them."""

    def __init__(self, tokenizer: Any, show: Callable[[str], None]) -> None:
        super().__init__(tokenizer, skip_prompt=True, skip_special_tokens=True)
        self._show = show

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:  # noqa: ARG002  (theirs)
        """Take the next words."""
        if text:
            self._show(text)


class _Ids(BaseStreamer):
    """Hands on the ids of new tokens."""

    def __init__(self, show: Callable[[str], None]) -> None:
        self._show = show
        self._has_prompt = self._has_any = False

    def put(self, value: torch.Tensor) -> None:
        """Take the prompt, then token after token."""
        if self._has_prompt:
            for token in value.flatten().tolist():
                self._show(f" {token}" if self._has_any else str(token))
                self._has_any = True
        self._has_prompt = True

    def end(self) -> None:
        """Nothing is held back."""
