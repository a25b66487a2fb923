"""When a new selection is made."""

from louiskv.triggers.base import Estimate, Trigger, TriggerState
from louiskv.triggers.cosine import AnchorCosine, AnchorState, Cosine, CosineState
from louiskv.triggers.coverage import Coverage, CoverageState
from louiskv.triggers.every import Every, EveryState
from louiskv.triggers.late import Late, LateState

__all__ = [
    "AnchorCosine",
    "AnchorState",
    "Cosine",
    "CosineState",
    "Coverage",
    "CoverageState",
    "Estimate",
    "Every",
    "EveryState",
    "Late",
    "LateState",
    "Trigger",
    "TriggerState",
]
