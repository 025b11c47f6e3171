"""Models of transformers as members that give logits and answers; the extra ``transformers``."""

from __future__ import annotations

import threading
from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

from transformers import AutoModelForCausalLM

from arc_halo.errors import FusionError, MemberError
from arc_halo.fusion.members.generating import generate, whole_prompt
from arc_halo.integrations.transformers_cache import DEFAULT_BLOCK_TOKENS, ModelCache
from arc_halo.integrations.transformers_chat import ChatMember, wants_template
from arc_halo.integrations.transformers_held import HeldSequences
from arc_halo.integrations.transformers_models import load_pretrained, load_tokenizer
from arc_halo.integrations.transformers_texts import TokenTexts
from arc_halo.registry import find_model

if TYPE_CHECKING:
    import datetime as dt
    import uuid
    from collections.abc import Callable, Sequence
    from types import TracebackType
    from typing import Self

    import numpy as np
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from arc_halo.database import Database
    from arc_halo.fusion.members.protocol import Answer, Question
    from arc_halo.fusion.plan import MemberPlan
    from arc_halo.inference.kv.types import CodecName
    from arc_halo.integrations.torch_identity.identity import Changes
    from arc_halo.schema import Model


class TransformersMember:
    """A live model of transformers as a member: logits of next tokens, and whole answers by them.

    Keys and values of what was computed last are held in memory, so that one more token costs one token; the prompt's
    are taken from the database and stored there, as `ModelCache` does. Weights that were changed in place are seen, and
    nothing of before is used. Several threads and operations may use it; the model computes for one at a time.

    Parameters
    ----------
    model
        A decoder in evaluation mode.
    cache
        Keep keys and values of prompts in the database. Without, they are held in memory where the model's layers
        allow that, and else computed each time.
    salt
        The tenant's.
    changes
        As in `identify`: ``content`` reads all weights when a prompt begins, ``versions`` trusts torch's counters.
    block_token_count, codec, logged, ttl
        As in `ModelCache`.

    Raises
    ------
    UnknownCacheLayer, CacheError
        Its keys and values cannot be kept: say ``cache=False``.

    Examples
    --------
    >>> member = TransformersMember(db, model, tokenizer)  # doctest: +SKIP
    >>> member.answer(Question("Return a list of", max_tokens=8)).text  # doctest: +SKIP
    """

    def __init__(
        self,
        db: Database,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        cache: bool = True,
        salt: bytes = b"",
        changes: Changes = "content",
        block_token_count: int = DEFAULT_BLOCK_TOKENS,
        codec: CodecName = "none",
        logged: bool = True,
        ttl: dt.timedelta | float | None = None,
    ) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self._lock = threading.RLock()  # guards the model, what is held, and the cache
        options: dict[str, Any] = {"block_token_count": block_token_count, "codec": codec, "logged": logged, "ttl": ttl}
        self._cache = (
            ModelCache(db, model, tokenizer=tokenizer, salt=salt, changes=changes, **options) if cache else None
        )
        self._held = HeldSequences(model, self._cache)
        self._texts = TokenTexts(tokenizer, _word_count(model))
        self.end_ids = _end_ids(model, tokenizer)

    @property
    def level(self) -> Literal["N"]:
        """``N``: it gives logits."""
        return "N"

    @property
    def vocabulary(self) -> Sequence[str]:
        """The text that each token adds to those before it."""
        with self._lock:  # made once, which takes a while
            return self._texts.vocabulary

    @property
    def position_count(self) -> int | None:
        """Tokens that a prompt and its answer may have together; None where the model does not say."""
        found: int | None = getattr(self.model.config.get_text_config(), "max_position_embeddings", None)
        return found

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """The tokens of a text, as the tokenizer begins one; or those of the text alone, if it has special ones."""
        return self._texts.encode(text, add_special_tokens=add_special_tokens)

    @cached_property
    def chatting(self) -> ChatMember:
        """The same model, asked in the chat template of its tokenizer; see `ChatMember`."""
        return ChatMember(self)

    def decode(self, token_ids: Sequence[int]) -> str:
        """The text of tokens that stand after others."""
        return self._texts.decode(token_ids)

    def next_logits(self, token_ids: Sequence[int]) -> np.ndarray:
        """The logits of the token after these, float32 of shape [vocabulary]; what is held is not computed again.

        Raises
        ------
        MemberError
            There are no tokens, more than the model has positions for, or one that it does not know.
        """
        return self.next_logits_and_spared(token_ids)[0]

    def next_logits_and_spared(self, token_ids: Sequence[int]) -> tuple[np.ndarray, int]:
        """As `next_logits`, and how many of the tokens were not computed."""
        tokens = list(map(int, token_ids))
        self._check(tokens)
        with self._lock:
            return self._held.next_logits(tokens)

    def each_next_logits(self, token_ids: Sequence[int], first: int) -> np.ndarray:
        """The logits after the first ``first`` tokens, after one more, and so on, by one pass through the model.

        Raises
        ------
        MemberError
            As `next_logits`.
        """
        tokens = list(map(int, token_ids))
        self._check(tokens)
        with self._lock:
            return self._held.each_next_logits(tokens, first)[0]

    def answer(self, question: Question) -> Answer:
        """Continue the prompt, with log-probabilities; by the same logits that strategies ask for.

        Raises
        ------
        MemberError
            The prompt has no tokens, or leaves no position for an answer.
        """
        return self.answer_while(question, lambda: True)

    def answer_while(self, question: Question, is_wanted: Callable[[], bool]) -> Answer:
        """As `answer`, until nobody wants it any more."""
        return self.continue_while(self.encode(whole_prompt(question)), question, is_wanted)

    def continue_while(self, token_ids: Sequence[int], question: Question, is_wanted: Callable[[], bool]) -> Answer:
        """As `answer_while`, after these tokens in place of the question's text."""
        counting = _Counting(self, token_ids)
        if self.position_count is not None:
            left = self.position_count - len(token_ids)
            if left < 1:
                raise MemberError(f"the prompt leaves none of {self.position_count} positions for an answer")
            question = replace(question, max_tokens=min(left, question.max_tokens))
        answer = generate(counting, question, is_wanted=is_wanted)
        return replace(answer, cached_token_count=counting.spared)

    def close(self) -> None:
        """Write the counts of hits that are left, and let go of what is held."""
        with self._lock:
            self._held.clear()
            if self._cache is not None:
                self._cache.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _check(self, tokens: list[int]) -> None:
        words, places = _word_count(self.model), self.position_count
        if not tokens:
            raise MemberError("it goes on from at least one token: the prompt is empty")
        if places is not None and len(tokens) > places:
            raise MemberError(f"{len(tokens)} tokens are more than its {places} positions")
        if not (min(tokens) >= 0 and max(tokens) < words):
            raise MemberError(f"it knows the tokens from 0 to {words - 1}, not all from {min(tokens)} to {max(tokens)}")


class _Counting:
    """A member for one answer, after tokens that are known, that notes what was spared of them."""

    def __init__(self, member: TransformersMember, token_ids: Sequence[int]) -> None:
        self._member = member
        self._token_ids = token_ids
        self.spared: int | None = None
        self.level = member.level
        self.vocabulary = member.vocabulary
        self.end_ids = member.end_ids
        self.decode = member.decode

    def encode(self, _text: str) -> list[int]:
        return list(self._token_ids)

    def next_logits(self, token_ids: Sequence[int]) -> np.ndarray:
        logits, spared = self._member.next_logits_and_spared(token_ids)
        if self.spared is None:
            self.spared = spared
        return logits


def load_member(
    db: Database,
    reference: Model | uuid.UUID | str,
    *,
    weights_digest: bytes | None = None,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | str | None = None,
    dequantize: bool = False,
    changes: Changes = "versions",  # it was just loaded, and nobody but us has it
    **options: Any,
) -> TransformersMember:
    """A version out of the database as a member.

    Parameters
    ----------
    reference
        ``name@version``, or as in `find_model`.
    weights_digest
        What its weights must be; by default whatever they are.
    device, dtype, dequantize
        As in `load_pretrained`.
    options
        Of `TransformersMember`.

    Raises
    ------
    ModelNotFound
        There is no such model.
    ConfigurationError
        It is none that generates text, or has no tokenizer.
    FusionError
        Its weights are others.
    UnknownCacheLayer, CacheError
        Its keys and values cannot be kept: say ``cache=False``.

    Examples
    --------
    >>> load_member(db, "lm@production").answer(Question("Return a list of")).text  # doctest: +SKIP
    """
    with db.session() as session:
        found = find_model(session, reference)
        if weights_digest is not None and found.weights_digest != weights_digest:
            raise FusionError(f"the weights of {found.name}@{found.version} were changed meanwhile: ask again")
        tokenizer = load_tokenizer(session, found)
        module = load_pretrained(
            session, found, auto_class=AutoModelForCausalLM, device=device, dtype=dtype, dequantize=dequantize
        )
    return TransformersMember(db, module, tokenizer, changes=changes, **options)


class TransformersMembers:
    """What a `Reactor` takes as its members: versions of models by what the rows say, each loaded once.

    Where a row's config says ``chat_template: true``, the member is a `ChatMember` of that model.

    Gives None for members without a model, so that it can stand beside others.
    """

    def __init__(self, db: Database, **options: Any) -> None:
        self._db = db
        self._options = options
        self._lock = threading.Lock()
        self._loading: dict[uuid.UUID, threading.Lock] = {}
        self._loaded: dict[uuid.UUID, tuple[bytes | None, TransformersMember]] = {}

    def __call__(self, plan: MemberPlan) -> TransformersMember | ChatMember | None:
        """The member of a row; the version is loaded when it is first asked for, and when its weights were changed.

        Raises
        ------
        FusionError
            Its config asks for a chat template that there is not.
        """
        if plan.model_id is None:
            return None
        is_chat = wants_template(plan.config, plan.name)
        member = self._load(plan, plan.model_id)
        return member.chatting if is_chat else member

    def _load(self, plan: MemberPlan, model_id: uuid.UUID) -> TransformersMember:
        with self._lock:
            loading = self._loading.setdefault(model_id, threading.Lock())
        with loading:  # others of other versions go on meanwhile
            digest, member = self._loaded.get(model_id, (None, None))
            if member is None or digest != plan.weights_digest:
                if member is not None:
                    member.close()
                member = load_member(self._db, model_id, weights_digest=plan.weights_digest, **self._options)
                self._loaded[model_id] = plan.weights_digest, member
            return member

    def close(self) -> None:
        """Close all members, and let go of them."""
        with self._lock:
            for _, member in self._loaded.values():
                member.close()
            self._loaded.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


def transformers_members(db: Database, **options: Any) -> TransformersMembers:
    """Members of models out of the database, for a `Reactor`; options are those of `load_member`.

    Examples
    --------
    >>> with transformers_members(db) as models:  # doctest: +SKIP
    ...     print(Reactor(db, "answers", models).run("Return a list of").text)
    """
    return TransformersMembers(db, **options)


def _word_count(model: PreTrainedModel) -> int:
    head = model.get_output_embeddings()
    return int(model.config.get_text_config().vocab_size if head is None else head.weight.shape[0])


def _end_ids(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """Of the generation's config, else of the model's and the tokenizer's."""
    config = getattr(model, "generation_config", None)
    for said in (getattr(config, "eos_token_id", None), model.config.eos_token_id, tokenizer.eos_token_id):
        if said is not None:
            return frozenset([said] if isinstance(said, int) else said)
    return frozenset()
