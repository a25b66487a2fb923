"""How good against how much: scores and KL divergence over what is moved and what lies on the device."""

from louiskv.evaluation.summary import summarise
from louiskv.reporting.content import Section, origins
from louiskv.reporting.fronts import Goal, Point, fronts
from louiskv.reporting.records import Measured, comparable

SCORE = Goal("Mean task score", "mean task score", 1)
KL = Goal("KL divergence", "KL divergence from full attention", -1)


def accuracy(model: Measured) -> Section | None:
    """Fronts of score and of KL divergence."""
    asked, partly_asked = comparable(model.of("task"))
    fed, partly_fed = comparable(model.of("fidelity"))
    scored = [Point(row.name, row.budget, row.mean_score, row.fetched, row.device) for row in summarise(asked)]
    lost = [Point(row.name, row.budget, row.kl or 0, row.fed_fetched, row.fed_device) for row in summarise(fed)]
    parts = [
        *fronts(SCORE, scored, missing(partly_asked), origins(asked)),
        *fronts(KL, lost, missing(partly_fed), origins(fed)),
    ]
    told = (
        "What a method answers, and how far its next token is from full attention's, against what it costs. Methods "
        "that move nothing stand at 0 bytes."
    )
    return Section("accuracy", "Accuracy against memory and traffic", told, list(parts)) if parts else None


def missing(names: list[str]) -> str:
    """How a caption ends that lacks methods."""
    return f" Not shown, for lack of runs that the others have: {', '.join(names)}." if names else ""
