"""Arrays to rows and back: the only writer of chunk bytes.

Source
    Where a tensor's bytes come from; read in pieces, never held whole.
Base
    A stored tensor, or a chunk of it, that a new one is stored as a delta of.
Batch
    A few mebibytes of chunks that are written in one savepoint or one short transaction.
Destination
    The caller's transaction for what is small, short transactions of our own for what is big.
Payload
    What is stored of a chunk: in its row, or as an object of the blob store.
Manifest
    A tensor's chunks in order, proven by its seal; a model's tensors, proven by its weights digest.
Fault
    A place where stored bytes are not those that were written.
Grace
    How long content that nothing refers to stays, because an upload under way may be about to.
"""

from arc_halo.store.check import Fault, check_tensors
from arc_halo.store.get import Wanted, get_arrays, get_rows, read_pieces
from arc_halo.store.progress import Meter, Progress
from arc_halo.store.prune import Pruned, prune
from arc_halo.store.put import put_tensors
from arc_halo.store.sources import ArraySource, FileSource, TensorSource

__all__ = [
    "ArraySource",
    "Fault",
    "FileSource",
    "Meter",
    "Progress",
    "Pruned",
    "TensorSource",
    "Wanted",
    "check_tensors",
    "get_arrays",
    "get_rows",
    "prune",
    "put_tensors",
    "read_pieces",
]
