"""Training runs: their metrics, their checkpoints, and the one history that both follow.

Run
    A model's training under a name (TrainingSession): what it shall do, and how far it is.
Attempt
    One start or restart of a run. Attempts are a tree: resuming, rewinding and forking all make a child that says up to
    which step it takes its parent's history.
Line
    The history that counts: from an attempt to its oldest ancestor, of each the steps up to its child's fork. Each step
    stands in it once.
Series
    One metric of one attempt, told apart by name, scope and context.
Point
    The value of a series at a step; the later of two at one step replaces the earlier.
Segment
    Up to 4,096 points of a series, sealed: packed into one row that views still show point by point.
Summary
    What is asked of a series most, kept beside it: count, last, minimum and maximum, and where they stand.
Checkpoint
    A state to go back to, published in one transaction with the metrics up to its step.
Rank
    One process of an attempt that trains in several.
"""

from arc_halo.training.checkpoint import CheckpointState, LoadedCheckpoint
from arc_halo.training.checkpointing import SavedCheckpoint
from arc_halo.training.comparing import align_curves, compare_runs
from arc_halo.training.curves import chart, charts
from arc_halo.training.deleting import delete_run
from arc_halo.training.finding import find_checkpoint, latest_checkpoint
from arc_halo.training.history import best, history, latest
from arc_halo.training.loading import load_checkpoint
from arc_halo.training.membership import join_attempt
from arc_halo.training.naming import find_run
from arc_halo.training.optimizer import OptimizerSnapshot
from arc_halo.training.parts import Part
from arc_halo.training.points import record_points, write_points
from arc_halo.training.ranks import begin_checkpoint, publish_checkpoint, write_rank
from arc_halo.training.releasing import publish_as_model
from arc_halo.training.reproducibility import Reproduction, verify_reproducibility
from arc_halo.training.retention import apply_retention, delete_checkpoint
from arc_halo.training.run import TrainingRun, training_run
from arc_halo.training.saving import save_checkpoint
from arc_halo.training.sealing import seal_points
from arc_halo.training.searching import find_runs, find_similar_runs, index_curves
from arc_halo.training.slabs import load_slab
from arc_halo.training.summaries import summarize_runs

__all__ = [
    "CheckpointState",
    "LoadedCheckpoint",
    "OptimizerSnapshot",
    "Part",
    "Reproduction",
    "SavedCheckpoint",
    "TrainingRun",
    "align_curves",
    "apply_retention",
    "begin_checkpoint",
    "best",
    "chart",
    "charts",
    "compare_runs",
    "delete_checkpoint",
    "delete_run",
    "find_checkpoint",
    "find_run",
    "find_runs",
    "find_similar_runs",
    "history",
    "index_curves",
    "join_attempt",
    "latest",
    "latest_checkpoint",
    "load_checkpoint",
    "load_slab",
    "publish_as_model",
    "publish_checkpoint",
    "record_points",
    "save_checkpoint",
    "seal_points",
    "summarize_runs",
    "training_run",
    "verify_reproducibility",
    "write_points",
    "write_rank",
]
