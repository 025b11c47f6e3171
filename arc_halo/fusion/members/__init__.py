"""What a member can be asked, what it answers, and members made of plain functions."""

from arc_halo.fusion.members.callables import CallableMember
from arc_halo.fusion.members.protocol import (
    Answer,
    Answering,
    Level,
    Predicting,
    Question,
    Stoppable,
    TokenChoice,
    Verifying,
    level_of,
)

__all__ = [
    "Answer",
    "Answering",
    "CallableMember",
    "Level",
    "Predicting",
    "Question",
    "Stoppable",
    "TokenChoice",
    "Verifying",
    "level_of",
]
