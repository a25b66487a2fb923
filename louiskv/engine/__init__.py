"""Continuous batching over one cache whose rows come and go."""

from louiskv.engine.answer import Answer
from louiskv.engine.engine import Engine
from louiskv.engine.figures import Attended, Figures
from louiskv.engine.request import Conversation, Logprob, Piece, Request, Sampling, Usage

__all__ = [
    "Answer",
    "Attended",
    "Conversation",
    "Engine",
    "Figures",
    "Logprob",
    "Piece",
    "Request",
    "Sampling",
    "Usage",
]
