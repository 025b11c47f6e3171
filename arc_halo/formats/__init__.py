"""File formats of models, read strictly: a file is what its format says, or it is refused with the reason.

Header
    The part of a weights file that says what the rest is: names, types, shapes, places.
Entry
    One tensor of a file: its name, type, shape and where its bytes are.
Shard
    One of several files that hold a model's weights together; an index file says which tensor is where.
Model folder
    Weights, configuration and tokenizer as they are published: a folder with one file or several shards.
Architecture
    What the configuration and the tensor names say of layers, heads and the use of each weight.

Weights are read by `pread` into the caller's buffer, piece by piece: no file is mapped, for a mapped file that is cut
short kills the process, and no pickle is opened, for a pickle is a program.
"""
