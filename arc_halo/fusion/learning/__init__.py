"""What stored operations teach: weights, thresholds, the worth of other choices, and how sure that is.

Outcome
    The quality of an answer, told by a reference, a scorer or a person; without outcomes nothing is learned.
Off-policy estimate
    What another way of choosing members would have been worth, from operations that chose by chance and wrote down
    with which probability.
Interval
    Between which values the true one lies, by resampling what was seen.
"""

from arc_halo.fusion.learning.intervals import Interval, bootstrap, paired_bootstrap
from arc_halo.fusion.learning.pool_weights import fit_linear_pool, fit_log_pool
from arc_halo.fusion.learning.thresholds import FittedCascade, calibrate, fit_cascade
from arc_halo.fusion.learning.values import Estimate, estimate_value
from arc_halo.fusion.learning.vote_weights import fit_vote_weights

__all__ = [
    "Estimate",
    "FittedCascade",
    "Interval",
    "bootstrap",
    "calibrate",
    "estimate_value",
    "fit_cascade",
    "fit_linear_pool",
    "fit_log_pool",
    "fit_vote_weights",
    "paired_bootstrap",
]
