"""Keys and values that are held in memory while tokens are predicted one by one; the extra ``transformers``."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import torch
from sqlalchemy.exc import SQLAlchemyError

from arc_halo.errors import ArcHaloError, CacheError
from arc_halo.integrations.torch_identity.contents import Stamp
from arc_halo.integrations.transformers_layers import cache_argument, new_cache

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    from transformers import DynamicCache, PreTrainedModel

    from arc_halo.integrations.transformers_cache import ModelCache

_log = logging.getLogger(__name__)

WORTH_TOKENS: Final = 16
"""To be computed at once; the database is not asked for fewer."""
_KEPT: Final = 4
"""Sequences whose keys and values are held: as many operations can go on side by side, token by token."""

_FEW_TOKENS: Final = 4
"""That may be taken back from a sequence, as where a text is split into tokens anew; of more another one is begun."""


@dataclass(slots=True)
class _Sequence:
    """Keys and values in memory.

    Attributes
    ----------
    token_ids
        Whose they are.
    begun
        What `ModelCache.restore` began them with; None for such that cannot be stored.
    """

    token_ids: list[int] = field(default_factory=list)
    cache: DynamicCache | None = None
    begun: list[int] | None = None

    def common(self, token_ids: Sequence[int]) -> int:
        """How many of the first tokens are these."""
        shared = 0
        for ours, theirs in zip(self.token_ids, token_ids, strict=False):
            if ours != theirs:
                break
            shared += 1
        return shared

    def crop(self, count: int) -> None:
        """Keep the first tokens alone."""
        surplus = len(self.token_ids) - count
        if surplus and self.cache is not None:
            self.cache.crop(-surplus)  # what is to go; releases before 5.24 also took a positive number for what stays
        self.token_ids = self.token_ids[:count]


class HeldSequences:
    """The last sequences of a model; of a new one only what none of them has, nor the database, is computed.

    Not for several threads at once.

    Parameters
    ----------
    cache
        Where prompts are looked up and stored; None for memory alone.
    """

    def __init__(self, model: PreTrainedModel, cache: ModelCache | None) -> None:
        self._model = model
        self._cache = cache
        self._sequences: list[_Sequence] = []  # the last used is the last
        self._stamps: list[Stamp] = []
        self._is_holding = _can_hold(model)

    def next_logits(self, tokens: list[int]) -> tuple[np.ndarray, int]:
        """The logits after these tokens, float32 of shape [vocabulary], and how many of them were not computed."""
        logits, spared = self.each_next_logits(tokens, len(tokens))
        return logits[0], spared

    def each_next_logits(self, tokens: list[int], first: int) -> tuple[np.ndarray, int]:
        """As `next_logits`, after the first ``first`` tokens, one more, and so on: [tokens - first + 1, vocabulary]."""
        with torch.inference_mode():
            self._forget_if_changed()
            sequence = self._begin(tokens[:first]) if self._is_holding else _Sequence()
            spared = len(sequence.token_ids)
            logits = self._compute(tokens, sequence)[first - 1 - spared :]
            if sequence.cache is not None:
                self._keep(sequence, tokens, spared)
        return logits, spared

    def clear(self) -> None:
        """Let go of all."""
        self._sequences.clear()

    def _forget_if_changed(self) -> None:
        """What is held was computed with weights that may be others by now."""
        tensors = [*self._model.parameters(), *self._model.buffers()]
        same = len(tensors) == len(self._stamps)
        if not (same and all(stamp.is_of(each) for stamp, each in zip(self._stamps, tensors, strict=True))):
            self._sequences.clear()
            self._stamps = [Stamp.of(each) for each in tensors]

    def _begin(self, tokens: list[int]) -> _Sequence:
        """What there is of these tokens, in memory or in the database; the last one is always left to compute."""
        best = max(self._sequences, key=lambda each: each.common(tokens), default=None)
        common = 0 if best is None else min(best.common(tokens), len(tokens) - 1)
        if self._cache is not None and len(tokens) - common >= WORTH_TOKENS:
            restored = self._restore(self._cache, tokens, common)
            if restored is not None:
                return restored
        if best is None or best.cache is None or common == 0:
            return _Sequence(cache=new_cache(self._model))
        if len(best.token_ids) - common > _FEW_TOKENS:  # another's, who goes on with it
            return _Sequence(tokens[:common], _copied(best.cache, common, self._model))
        # Should the computation fail, nobody knows what its cache holds: it comes back when it is over.
        self._sequences = [each for each in self._sequences if each is not best]
        best.crop(common)
        return best

    def _restore(self, cache: ModelCache, tokens: list[int], common: int) -> _Sequence | None:
        """What the database has, where that is more than memory has; trouble with it is a warning in the log."""
        try:
            if common and cache.current().lookup(tokens[:-1]).token_count <= common:
                return None
            restored, hit = cache.restore(torch.tensor([tokens]))
        except (ArcHaloError, SQLAlchemyError) as error:
            _log.warning("keys and values of %d tokens were not looked up: %s", len(tokens), error)
            return None
        return _Sequence(tokens[:hit], restored, tokens)

    def _compute(self, tokens: list[int], sequence: _Sequence) -> np.ndarray:
        row = torch.tensor([tokens[len(sequence.token_ids) :]], device=self._model.device)
        given: dict[str, Any] = {"use_cache": False}
        if sequence.cache is not None:
            given = {"use_cache": True, cache_argument(self._model): sequence.cache}
        logits = self._model(input_ids=row, **given).logits[0]
        found: np.ndarray = logits.float().cpu().numpy()
        return found

    def _keep(self, sequence: _Sequence, tokens: list[int], spared: int) -> None:
        if sequence.cache is None or sequence.cache.get_seq_length() != len(tokens):
            # Virtual tokens stand before those of the prompt: what is held is not that of the tokens alone.
            self._is_holding = False
            self._sequences.clear()
            return
        sequence.token_ids = tokens
        self._sequences = [*self._sequences, sequence][-_KEPT:]
        is_of_begun = sequence.begun is not None and tokens[: len(sequence.begun)] == sequence.begun
        if self._cache is not None and is_of_begun and len(tokens) - spared >= WORTH_TOKENS:
            try:
                self._cache.store(sequence.cache, torch.tensor([tokens]))
            except (ArcHaloError, SQLAlchemyError) as error:
                _log.warning("keys and values of %d tokens were not stored: %s", len(tokens), error)


def _copied(cache: DynamicCache, count: int, model: PreTrainedModel) -> DynamicCache:
    """Another cache of the first tokens; it shares memory until either grows, which makes tensors anew."""
    copied = new_cache(model)
    for ours, theirs in zip(copied.layers, cache.layers, strict=True):
        keys, values = theirs.keys[..., :count, :], theirs.values[..., :count, :]
        ours.lazy_initialization(keys, values)
        ours.keys, ours.values = keys, values
    return copied


def _can_hold(model: PreTrainedModel) -> bool:
    """Whether the keys and values of tokens stay the same whatever follows, and all of them are kept."""
    try:
        new_cache(model)
    except CacheError:
        return False
    return True
