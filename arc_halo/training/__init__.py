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
