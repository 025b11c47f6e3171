"""How good answers are: agreement, variety, quality, calibration, and what was gained by asking several.

Coherence
    How much answers agree, 1 for the same.
Diversity
    How much they differ, 0 for the same; no plain complement of coherence, as each is measured in its own way.
Quality
    Of an answer, by the reference, a scorer or somebody's word.
Alone
    An answer that a member gave to the question itself, having seen no other member's: the answers that a reactor's
    gain is counted against.
Gain
    Quality above that of the best member alone; below 0 where the reactor spoils what that member knew.
Oracle gap
    Quality that was there among the members' answers, and did not become the reactor's.
"""

from arc_halo.fusion.metrics.calibration import brier_score, expected_calibration_error
from arc_halo.fusion.metrics.coherence import divergence_coherence, jensen_shannon_divergence, mean_pairwise_cosine
from arc_halo.fusion.metrics.diversity import pairwise_disagreement, q_statistic, self_bleu, vendi_score
from arc_halo.fusion.metrics.measuring import measure_operation
from arc_halo.fusion.metrics.quality import exact_match, normalised

__all__ = [
    "brier_score",
    "divergence_coherence",
    "exact_match",
    "expected_calibration_error",
    "jensen_shannon_divergence",
    "mean_pairwise_cosine",
    "measure_operation",
    "normalised",
    "pairwise_disagreement",
    "q_statistic",
    "self_bleu",
    "vendi_score",
]
