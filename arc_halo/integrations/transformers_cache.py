"""Keys and values of transformers models out of the database and into it; the extra ``transformers``."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal, TypeAlias, get_args
from weakref import WeakKeyDictionary

import numpy as np
import torch
from sqlalchemy.exc import SQLAlchemyError

from arc_halo.errors import ArcHaloError, CacheError
from arc_halo.inference.kv import KVCache
from arc_halo.inference.kv.storing import check_codec
from arc_halo.integrations.torch_identity import identify, namespace_of
from arc_halo.integrations.transformers_first_token import FirstToken
from arc_halo.integrations.transformers_layers import cache_argument, fill, held_layers, layout_of, new_cache
from arc_halo.integrations.transformers_limits import check_options, with_cache

if TYPE_CHECKING:
    import datetime as dt
    from types import TracebackType
    from typing import Self

    from transformers import DynamicCache, PreTrainedModel

    from arc_halo.database import Database
    from arc_halo.inference.kv import BreakEven, StoredPrefix
    from arc_halo.inference.kv.types import CodecName, Layers
    from arc_halo.inference.namespaces import Namespace
    from arc_halo.integrations.torch_identity.identity import Changes

_log = logging.getLogger(__name__)

DEFAULT_BLOCK_TOKENS: Final = 256
# Of fewer tokens the time says more of the machine's mood than of the prompt.
_MEASURED_TOKENS: Final = 32
# Each has a thread that writes counts: a model in training is another one after each step.
_KEPT_CACHES: Final = 4
Keep: TypeAlias = Literal["prompt", "all", "nothing"]


@dataclass(frozen=True, slots=True)
class Generated:
    """What `ModelCache.generate` made, and what it took.

    Attributes
    ----------
    sequences
        Prompt and answer, int64 of shape [1, tokens].
    prompt_token_count, hit_token_count
        Tokens of the prompt, and how many of them came from the cache.
    first_token_seconds
        From the call to the first new token, the look at the weights and the database included.
    seconds
        From the call to the last token.
    seconds_saved
        What computing the tokens that were read would have taken, by the measured rate, less what this call took to
        identify the model, find them and read them: negative where that was longer. None without a hit, or a rate.
    """

    sequences: torch.Tensor
    prompt_token_count: int
    hit_token_count: int
    first_token_seconds: float
    seconds: float
    seconds_saved: float | None

    @property
    def new_tokens(self) -> torch.Tensor:
        """The answer alone, of shape [tokens]."""
        return self.sequences[0, self.prompt_token_count :]


class ModelCache:
    """The stored keys and values of one live model.

    Before each use the model is identified by what it holds (`identify`): weights that were changed in place, another
    adapter, config or tokenizer have keys and values of their own, and never see those of what it was before.

    Parameters
    ----------
    model
        A decoder of transformers, in evaluation mode, whose layers keep plain keys and values of all tokens.
    tokenizer
        What makes its input; part of the identity.
    block_token_count
        Tokens of a whole block.
    codec
        ``none``, ``lossless``, or ``int8`` for one byte in the place of each number, and results that differ
        (`rounding_divergence` measures by how much).
    logged, ttl
        As in `KVCache`.
    salt
        The tenant's.
    changes
        As in `identify`: ``content`` reads all weights at each use.

    Raises
    ------
    UnknownCacheLayer
        A layer keeps more or less than keys and values: a sliding window, a state.
    CacheError
        The model cannot be identified, its keys depend on tokens that come after them, or an option makes no sense.

    Examples
    --------
    >>> with ModelCache(db, load_pretrained(session, "lm@production")) as cache:  # doctest: +SKIP
    ...     print(cache.generate(input_ids, max_new_tokens=20).hit_token_count)
    """

    def __init__(
        self,
        db: Database,
        model: PreTrainedModel,
        *,
        tokenizer: Any = None,
        block_token_count: int = DEFAULT_BLOCK_TOKENS,
        codec: CodecName = "none",
        logged: bool = True,
        ttl: dt.timedelta | float | None = None,
        salt: bytes = b"",
        changes: Changes = "content",
    ) -> None:
        check_codec(codec)
        self.model = model
        self._db = db
        self._tokenizer = tokenizer
        self._block_token_count = block_token_count
        self._options: dict[str, Any] = {"codec": codec, "logged": logged, "ttl": ttl}
        self._salt = salt
        self._changes: Changes = changes
        self._caches: dict[bytes, KVCache] = {}
        # What each cache was begun with: only then can be told what its keys and values were computed with.
        self._begun: WeakKeyDictionary[DynamicCache, tuple[Namespace, np.ndarray]] = WeakKeyDictionary()
        self.layout = layout_of(model)
        self.current()

    @property
    def break_even(self) -> BreakEven:
        """What reading and computing take, as measured."""
        return self.current().break_even

    def current(self) -> KVCache:
        """The stored keys and values of what the model is now."""
        if torch.is_autocast_enabled("cpu") or torch.is_autocast_enabled(self.model.device.type):
            raise CacheError("under autocast keys and values are of types that no digest of the model tells; leave it")
        identity = identify(self.model, tokenizer=self._tokenizer, changes=self._changes)
        namespace = namespace_of(
            identity,
            kind="kv",
            layout=str(self.layout),
            dtype=self.layout.dtype,
            precision="int8" if self._options["codec"] == "int8" else "exact",
            block_token_count=self._block_token_count,
            salt=self._salt,
        )
        found = self._caches.pop(namespace.digest, None)
        if found is None:
            found = KVCache(self._db, namespace, self.layout, **self._options)
        self._caches[namespace.digest] = found  # the newest is the last
        while len(self._caches) > _KEPT_CACHES:
            self._caches.pop(next(iter(self._caches))).close()
        return found

    def restore(self, input_ids: torch.Tensor) -> tuple[DynamicCache, int]:
        """A cache with what is stored of a prompt, and of how many tokens; the last token is always left to compute.

        Parameters
        ----------
        input_ids
            Of shape [1, tokens]; one row, without padding.

        Returns
        -------
        DynamicCache
            To be given to the model with the tokens after the hit, and then to `store`.
        int
            Tokens it holds.
        """
        tokens = _row(input_ids)
        kv = self.current()
        layers, hit = kv.restore(tokens[:-1])
        return self._begin(kv, layers, tokens), hit

    def store(self, cache: DynamicCache, input_ids: torch.Tensor, *, pinned: bool = False) -> StoredPrefix:
        """Store the keys and values of the first tokens of a cache that `restore` began.

        Raises
        ------
        CacheError
            The cache was not begun here, holds fewer tokens, was begun with others, or the model was changed since:
            nobody can tell then what its keys and values were computed with.
        """
        if cache not in self._begun:
            raise CacheError("this cache was not begun by restore(): what computed its keys and values is not known")
        namespace, begun = self._begun[cache]
        kv = self.current()
        if kv.namespace.digest != namespace.digest:
            raise CacheError("the model was changed since restore(): nothing of this cache is stored; begin anew")
        tokens = _row(input_ids)
        shared = min(len(tokens), len(begun))
        if not np.array_equal(tokens[:shared], begun[:shared]):
            raise CacheError("these are not the tokens that restore() was given: whose keys and values are these?")
        return kv.store(tokens, held_layers(cache, self.layout, len(tokens)), pinned=pinned)

    def generate(self, input_ids: torch.Tensor, *, keep: Keep = "prompt", **options: Any) -> Generated:
        """As the model's own ``generate``, with what is stored of the prompt, which is stored afterwards.

        The answer is given whatever becomes of storing: trouble with that is a warning in the log.

        Parameters
        ----------
        input_ids
            Of shape [1, tokens]; one row, without padding.
        keep
            What to store: the prompt, the answer with it (for a conversation that goes on), or nothing.
        options
            Those of ``generate``, but for several rows, beams, other caches, answers as dicts, and input that is not
            tokens; in the configs neither.

        Raises
        ------
        CacheError
            An option that would make keys and values differ from those of the tokens, several rows of them, or no such
            ``keep``.
        """
        begun = time.perf_counter()
        if keep not in get_args(Keep):
            raise CacheError(f"there is no keep={keep!r}; {', '.join(get_args(Keep))} are")
        tokens = _row(input_ids)
        check_options(options, self.model, len(tokens))
        kv = self.current()
        prefix = kv.lookup(tokens[:-1])
        layers = kv.load_if_faster(prefix)
        hit = layers[0][0].shape[1]
        cache = self._begin(kv, layers, tokens)
        first = FirstToken(options.pop("streamer", None))
        # Without one, transformers hides each token of the prompt that is equal to the one for padding.
        options["attention_mask"] = torch.ones_like(input_ids)
        computing = time.perf_counter()
        with torch.inference_mode():
            sequences = self.model.generate(
                input_ids, **{cache_argument(self.model): cache}, streamer=first, **with_cache(options)
            )
        ended = time.perf_counter()
        first_at = first.at or ended
        try:
            if keep != "nothing":
                self._keep(kv, cache, tokens, sequences, max(hit, prefix.token_count), whole=keep == "all")
            if len(tokens) - hit >= _MEASURED_TOKENS:  # after storing: what is first measured has no namespace before
                kv.note_computed(len(tokens) - hit, first_at - computing)
        except (ArcHaloError, SQLAlchemyError) as error:
            _log.warning("keys and values of %d tokens were not stored: %s", len(tokens), error)
        rate = kv.break_even.computed_tokens_per_second
        saved = hit / rate - (computing - begun) if hit and rate else None
        return Generated(sequences, len(tokens), hit, first_at - begun, ended - begun, saved)

    def close(self) -> None:
        """Write the counts of hits that are left."""
        for cache in self._caches.values():
            cache.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _keep(
        self, kv: KVCache, cache: DynamicCache, tokens: np.ndarray, sequences: torch.Tensor, hit: int, *, whole: bool
    ) -> None:
        """Store what a generation computed, if it computed the tokens that it gives, and those alone."""
        given = _row(sequences)
        held = cache.get_seq_length()
        # The last token is given, and was not computed with. Where virtual ones stand before the prompt, as in PEFT's
        # tuning of prompts, there are more; a prompt that was changed on the way is another one.
        if held != len(given) - 1 or not np.array_equal(given[: len(tokens)], tokens):
            _log.warning("nothing was stored: the model computed %d tokens for %d that are known", held, len(given) - 1)
            return
        kept = given[:-1] if whole else tokens
        if len(kept) > hit and self.current().namespace.digest == kv.namespace.digest:
            kv.store(kept, held_layers(cache, self.layout, len(kept)), skip=hit)

    def _begin(self, kv: KVCache, layers: Layers, tokens: np.ndarray) -> DynamicCache:
        cache = new_cache(self.model)
        if layers[0][0].shape[1]:
            fill(cache, layers, self.model.device)
        self._begun[cache] = kv.namespace, tokens
        return cache


def _row(input_ids: torch.Tensor) -> np.ndarray:
    if not isinstance(input_ids, torch.Tensor):
        raise CacheError(f"tokens are cached of a tensor of shape [1, tokens], not of {type(input_ids).__name__}")
    if input_ids.ndim != 2 or input_ids.shape[0] != 1 or input_ids.shape[1] < 1:  # noqa: PLR2004  (axes)
        raise CacheError(f"one row of tokens is cached at a time, of shape [1, tokens], not {list(input_ids.shape)}")
    row: np.ndarray = input_ids[0].cpu().numpy()
    return row
