"""What another way of choosing members would have been worth, from operations that chose by chance."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from arc_halo.errors import FusionError
from arc_halo.fusion.learning.intervals import Interval, bootstrap, bootstrap_ratio

Method = Literal["ips", "snips", "dr"]


@dataclass(frozen=True, slots=True)
class Estimate:
    """The value of a policy.

    Attributes
    ----------
    value
        Mean quality per operation, with its interval.
    effective_count
        Operations that the estimate rests on (Kish, 1965): far fewer than there are where the two policies differ.
    """

    value: Interval
    effective_count: float
    method: Method

    @property
    def is_reliable(self) -> bool:
        """Whether it rests on as many as thirty operations."""
        return self.effective_count >= 30  # noqa: PLR2004  # below that intervals by resampling are too narrow


def estimate_value(
    quality: np.ndarray,
    propensity: np.ndarray,
    probability: np.ndarray,
    *,
    method: Method = "snips",
    predicted: np.ndarray | None = None,
    predicted_chosen: np.ndarray | None = None,
    seed: int = 0,
) -> Estimate:
    """The mean quality that another policy would have had.

    Parameters
    ----------
    quality
        Of the answer that was given, float of shape [operations].
    propensity
        Probability with which its member was chosen then, in (0, 1].
    probability
        With which the other policy would have chosen the same member.
    method
        ``ips``, unbiased and noisy (Horvitz & Thompson, 1952); ``snips``, normalised by its weights (Swaminathan &
        Joachims, 2015); ``dr``, doubly robust (Dudík, Langford & Li, 2011), with predictions of quality.
    predicted
        Of ``dr``: expected quality under the other policy, by a model of outcomes, shape [operations].
    predicted_chosen
        Of ``dr``: expected quality of the member that was chosen.

    Raises
    ------
    FusionError
        Shapes differ, a propensity or probability is none, or the other policy chooses nothing that was ever chosen: no
        data can tell its value.
    """
    if not (quality.shape == propensity.shape == probability.shape) or quality.ndim != 1:
        raise FusionError("quality, propensity and probability are one each for an operation")
    if not ((propensity > 0) & (propensity <= 1)).all():
        raise FusionError("a propensity is a probability, and greater than 0")
    ratios = np.asarray(probability, np.float64) / propensity
    if not ratios.any():
        raise FusionError("the policy chooses nothing that was ever chosen: its value cannot be told from these")
    if not ((probability >= 0) & (probability <= 1)).all():
        raise FusionError("the other policy chooses with probabilities, from 0 to 1")
    effective = float(ratios.sum() ** 2 / (ratios**2).sum())
    if method == "ips":
        value = bootstrap(ratios * quality, seed=seed)
    elif method == "snips":
        # A resample in which the policy chose nothing says nothing but that qualities are those that there are.
        bounds = float(quality.min()), float(quality.max())
        value = bootstrap_ratio(ratios * quality, ratios, bounds=bounds, seed=seed)
    elif predicted is None or predicted_chosen is None:
        raise FusionError("the doubly robust estimate needs predictions of quality")
    elif not (predicted.shape == predicted_chosen.shape == quality.shape):
        raise FusionError("predictions are one each for an operation")
    else:
        value = bootstrap(predicted + ratios * (quality - predicted_chosen), seed=seed)
    return Estimate(value, effective, method)
