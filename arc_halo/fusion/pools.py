"""Opinion pools: several distributions of the next token become one.

Linear pool
    ``p(t) = sum_i w_i p_i(t)``: a token is likely where somebody holds it likely (Stone 1961).
Logarithmic pool
    ``p(t) ~ prod_i p_i(t) ** w_i``: a token is likely where nobody holds it unlikely. Weights that sum to 1 make it
    externally Bayesian: pooling and updating may change places (Genest & Zidek 1986, Combining Probability
    Distributions: A Critique and an Annotated Bibliography, Statistical Science 1(1), sections 2 and 3).
Gate
    A weight of each member that changes from token to token, by how sure it is there. ``entropy`` is ``exp(-H_i)``, one
    over the perplexity of its distribution: Misra, Bourlard & Tyagi (2003, New entropy based combination rules in
    HMM/ANN multi-stream ASR) take ``1 / H_i``, which has a pole where a member is certain. ``confidence`` is the
    greatest probability (Hendrycks & Gimpel 2017, A Baseline for Detecting Misclassified ... Examples).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal

import numpy as np

from arc_halo.errors import FusionError

if TYPE_CHECKING:
    from collections.abc import Sequence

PoolMethod = Literal["linear", "log"]
Gate = Literal["entropy", "confidence"]

LEAST_LOG_PROBABILITY: Final = float(np.log(np.finfo(np.float32).smallest_subnormal))
"""What a probability of 0 is recorded as: JSON has no infinity, and float32 nothing smaller."""
_ZERO: Final = np.float32(-200)
"""Its exponential is 0 in float32, as that of all below."""


@dataclass(frozen=True, slots=True)
class Pooled:
    """One joint distribution.

    Attributes
    ----------
    log_probabilities
        float32 of shape [tokens]; a buffer of the `Pool`, overwritten by its next use.
    weights
        Of the members, with the gate; they sum to 1 unless the pool leaves them as they are.
    log_normalizers
        What to subtract from a member's logits to have log-probabilities.
    method
        ``linear`` in the place of ``log`` where no token is possible for all members.
    """

    log_probabilities: np.ndarray
    weights: tuple[float, ...]
    log_normalizers: tuple[float, ...]
    method: PoolMethod


class Pool:
    """Pools distributions of one size after another, in buffers of its own; for one thread.

    Probabilities are float32: what is below 1.4e-45 is 0.

    Parameters
    ----------
    method
        Which pool.
    gate
        How weights follow the members' sureness; None leaves them as they are.
    normalize
        False leaves the weights of a logarithmic pool as they are: with a sum above 1 it is surer than its members
        (Hinton, 2002, products of experts), as `fit_log_pool` may find it should be.

    Examples
    --------
    >>> import numpy as np
    >>> pooled = Pool("linear")([np.log([0.5, 0.5]), np.log([0.9, 0.1])], [1, 1])
    >>> np.exp(pooled.log_probabilities).astype(float).round(3).tolist()
    [0.7, 0.3]
    """

    def __init__(self, method: PoolMethod, gate: Gate | None = None, *, normalize: bool = True) -> None:
        self._method, self._gate, self._normalize = method, gate, normalize
        self._buffers = np.empty((3, 0), np.float32)

    def __call__(self, logits: Sequence[np.ndarray], weights: Sequence[float]) -> Pooled:
        """Pool logits, or log-probabilities, of the members.

        Parameters
        ----------
        logits
            One array of shape [tokens] for each member; minus infinity is a token that cannot be. A member that holds
            nothing possible has no weight.
        weights
            0 or more for each member; they need not sum to 1. Zeros only count as all the same.

        Raises
        ------
        FusionError
            There is no member, the shapes differ, or no member holds anything possible.
        """
        if not logits or len({each.shape for each in logits}) != 1 or len(logits) != len(weights):
            raise FusionError(f"{len(weights)} weights for logits of the shapes {[each.shape for each in logits]}")
        size = len(logits[0])
        if self._buffers.shape[1] < size:
            self._buffers = np.empty((3, size), np.float32)
        greatest = [float(each.max()) for each in logits]
        able = [weight if most > -math.inf else 0.0 for weight, most in zip(weights, greatest, strict=True)]
        most = max(able)
        if most > 0:
            # As they are in float32: what is 0 there counts for nothing, as 0 times minus infinity would be NaN.
            given = [float(np.float32(each / most)) for each in able]
        else:
            given = [1.0 if each > -math.inf else 0.0 for each in greatest]
        pooled = self._pooled(self._method, logits, greatest, given, None if self._normalize else most)
        if pooled is None and self._method == "log":  # nothing is possible for all: better one's token than none
            pooled = self._pooled("linear", logits, greatest, given)
        if pooled is None:
            raise FusionError("no member with a weight holds any token possible")
        return pooled

    def _pooled(
        self,
        method: PoolMethod,
        logits: Sequence[np.ndarray],
        greatest: Sequence[float],
        weights: Sequence[float],
        scale: float | None = None,
    ) -> Pooled | None:
        joint, shifted, powers = self._buffers[:, : len(logits[0])]
        joint.fill(0)
        gated, normalizers = [], []
        for each, most, given in zip(logits, greatest, weights, strict=True):
            if most == -math.inf:
                gated.append(0.0)
                normalizers.append(0.0)
                continue
            np.subtract(each, np.float32(most), out=shifted, casting="same_kind")
            np.exp(shifted, out=powers)
            total = float(powers.sum())
            normalizers.append(most + math.log(total))
            weight = given
            if self._gate == "confidence":
                weight = given / total
            elif self._gate == "entropy":
                weight = given * _certainty(shifted, powers, total)
            gated.append(weight)
            factor = np.float32(weight / total if method == "linear" else weight)
            if factor > 0:
                part = powers if method == "linear" else shifted
                np.multiply(part, factor, out=part)
                joint += part
        mass = math.fsum(gated)
        if not mass > 0:
            return None
        unit = 1 / mass if scale is None or scale == 0 or method == "linear" else scale
        joint *= np.float32(unit)
        if not _to_log_probabilities(method, joint, powers):
            return None
        return Pooled(joint, tuple(each * unit for each in gated), tuple(normalizers), method)


def _certainty(shifted: np.ndarray, powers: np.ndarray, total: float) -> float:
    """``exp(-H)`` of unnormalised powers and their logarithms."""
    # A copy only where 0 * -infinity would be NaN: the logarithmic pool goes on with what is below.
    kept = shifted if shifted.min() > -np.inf else np.maximum(shifted, _ZERO)
    return math.exp(float(np.dot(powers, kept)) / total - math.log(total))


def _to_log_probabilities(method: PoolMethod, joint: np.ndarray, scratch: np.ndarray) -> bool:
    """Normalise in place; False where nothing is possible."""
    if method == "linear":
        with np.errstate(divide="ignore"):  # log 0 is the minus infinity that is meant
            np.log(joint, out=joint)
        return True
    greatest = joint.max()
    if greatest == -math.inf:
        return False
    joint -= greatest
    np.exp(joint, out=scratch)
    joint -= np.float32(math.log(float(scratch.sum())))
    return True


def pooled_coherence(
    logits: Sequence[np.ndarray], log_normalizers: Sequence[float], weights: Sequence[float]
) -> float | None:
    r"""How much distributions agree, ``1 - JSD / H(w)`` as of `divergence_coherence`, in float32.

    Parameters
    ----------
    logits, log_normalizers
        Of the members, each of shape [tokens], and as `Pooled` has them.
    weights
        Of the members; None is returned where less than two have one. Zeros only count as all the same.
    """
    total = math.fsum(weights)
    shares = [each / total for each in weights] if total > 0 else [1 / len(weights)] * len(weights)
    bound = -math.fsum(each * math.log(each) for each in shares if each > 0)
    if not bound > 0:
        return None
    mixture, scores, powers = np.zeros((3, len(logits[0])), np.float32)
    within = 0.0
    for each, normalizer, share in zip(logits, log_normalizers, shares, strict=True):
        if share > 0:
            np.subtract(each, np.float32(normalizer), out=scores, casting="same_kind")
            np.maximum(scores, _ZERO, out=scores)
            np.exp(scores, out=powers)
            within -= share * float(np.dot(powers, scores))
            powers *= np.float32(share)
            mixture += powers
    np.maximum(mixture, np.finfo(np.float32).tiny, out=powers)
    between = -float(np.dot(mixture, np.log(powers, out=scores)))
    return min(1.0, max(0.0, 1 - (between - within) / bound))
