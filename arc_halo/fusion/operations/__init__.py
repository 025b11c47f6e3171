"""One question to a reactor: calls of its members, and how all of it is stored.

Call
    A member asked once; its position is the order of asking, not of answering.
Trace
    Edges walked and decisions taken, in order; without times, so that a replay can be compared with it.
"""

from arc_halo.fusion.operations.calls import Call, CallStatus, Input, Member
from arc_halo.fusion.operations.operation import Operation

__all__ = ["Call", "CallStatus", "Input", "Member", "Operation"]
