"""Continuous batching over one cache whose rows come and go."""

from louiskv.engine.answer import Answer
from louiskv.engine.engine import Engine
from louiskv.engine.figures import Attended, Figures
from louiskv.engine.request import Conversation, Logprob, Piece, Request, Sampling, Usage
from louiskv.errors import EngineStoppedError, QueueFullError, RequestError

__all__ = [
    "Answer",
    "Attended",
    "Conversation",
    "Engine",
    "EngineStoppedError",
    "Figures",
    "Logprob",
    "Piece",
    "QueueFullError",
    "Request",
    "RequestError",
    "Sampling",
    "Usage",
]
