"""`torch.distributed.checkpoint` to and from the database, in rows as all checkpoints have; the extra ``torch``.

State dict
    What ``dcp.save`` is given: nested dicts and lists of tensors and plain values.
Path
    The keys and indexes that lead to an entry; its name is the path joined by dots.
Layout
    Which paths lead to weights and to the optimizer.
Plan
    What one rank saves or loads, as a planner has divided it; where several hold the same, one of them saves it.
Rank
    One process of the group, as in a training run.
"""

from arc_halo.integrations.dcp.group import distributed_run
from arc_halo.integrations.dcp.storage import DatabaseStorageReader, DatabaseStorageWriter

__all__ = ["DatabaseStorageReader", "DatabaseStorageWriter", "distributed_run"]
