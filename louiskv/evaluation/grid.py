"""What is evaluated: tasks at contexts, texts that are fed, and everything else that decides over a result."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from louiskv.contestants import Contestant
from louiskv.errors import SettingsError, check_count
from louiskv.evaluation.tasks import TASKS, Task

# What can be asked for beside the tasks.
FIDELITY = "fidelity"


def tasks_named(names: Iterable[str], known: Mapping[str, Task] = TASKS) -> dict[str, Task]:
    """Tasks by their names.

    Raises:
        SettingsError: There is no such task.
    """
    found = {}
    for name in names:
        if name not in known:
            raise SettingsError(f"There is no task {name!r}. The tasks are: {', '.join((*known, FIDELITY))}.")
        found[name] = known[name]
    return found


@dataclass(frozen=True)
class Asked:
    """Tasks: questions with answers.

    Attributes:
        tasks: The tasks by name.
        contexts: Tokens of the prompts.
        samples: Of each task at each context; all of them where a task has fewer.
        batch_size: Samples that are answered together.
        seed: Of the samples.
    """

    tasks: Mapping[str, Task] = field(default_factory=lambda: dict(TASKS))
    contexts: tuple[int, ...] = (2048,)
    samples: int = 4
    batch_size: int = 4
    seed: int = 0

    def __post_init__(self) -> None:
        """Check the numbers."""
        for context in self.contexts:
            check_count("context", context, 1)
        for name in ("samples", "batch_size"):
            check_count(name, getattr(self, name), 1)

    @property
    def batches(self) -> list[tuple[str, int, list[int]]]:
        """Task, context and numbers of the samples of each batch."""
        return [
            (name, context, list(range(samples)[start : start + self.batch_size]))
            for name, task in self.tasks.items()
            for samples in [self.samples if task.available is None else min(self.samples, task.available)]
            for context in self.contexts
            for start in range(0, samples, self.batch_size)
        ]


@dataclass(frozen=True)
class Fed:
    """Texts that are fed token by token, for fidelity and for probes.

    Attributes:
        prompts: Tokens of the text before.
        steps: Tokens that are fed.
        texts: Texts of each length; they are a batch.
        seed: Where they begin.
    """

    prompts: tuple[int, ...] = (512, 2048)
    steps: int = 256
    texts: int = 2
    seed: int = 0

    def __post_init__(self) -> None:
        """Check the numbers."""
        for prompt in self.prompts:
            check_count("prompt", prompt, 1)
        check_count("steps", self.steps, 2)
        check_count("texts", self.texts, 1)


def planned(asked: Asked, fed: Fed | None, contestants: list[Contestant]) -> int:
    """Runs of a whole evaluation."""
    return (len(asked.batches) + (len(fed.prompts) if fed else 0)) * len(contestants)
