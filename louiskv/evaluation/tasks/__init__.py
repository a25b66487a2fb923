"""All tasks by name."""

from louiskv.evaluation.tasks.base import Sample, Task
from louiskv.evaluation.tasks.counting import CommonWords
from louiskv.evaluation.tasks.ledger import Ledger
from louiskv.evaluation.tasks.needles import Needles
from louiskv.evaluation.tasks.reading import Reading
from louiskv.evaluation.tasks.records import Records
from louiskv.evaluation.tasks.variables import VariableTracking

TASKS: dict[str, Task] = {
    "passkey": Needles(),
    "multikey": Needles(keys=4),
    "multivalue": Needles(values=3),
    "multiquery": Needles(keys=4, asked=2),
    "variable_tracking": VariableTracking(),
    "common_words": CommonWords(),
    "reading": Reading(),
    "records": Records(),
    "ledger": Ledger(),
    "ledger_behind_text": Ledger(behind_text=True),
}

__all__ = ["TASKS", "Sample", "Task"]
