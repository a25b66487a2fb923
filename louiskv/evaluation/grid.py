"""What is evaluated: methods at budgets, tasks at contexts, and everything else that decides over a result."""

from dataclasses import dataclass, fields, replace
from typing import Any

from louiskv.errors import SettingsError, check_count
from louiskv.evaluation.tasks import TASKS
from louiskv.methods import METHODS
from louiskv.methods.base import Method
from louiskv.methods.razor_attention import RazorAttention

# Sinks and window of a method each get at most this share of a small budget.
SHARE = 4


def at_budget(method: Method, budget: int) -> Method:
    """The method at another budget: its own settings, but sinks and window of at most a quarter of the budget each.

    RazorAttention, whose retrieval heads have no budget, keeps that many tokens in its other heads.

    Raises:
        SettingsError: The method cannot work with so few.
    """
    names = {each.name for each in fields(method)}
    values = method.values()
    if isinstance(method, RazorAttention):
        return replace(method, window=budget - method.sink, share=0.0)
    if "budget" not in names:
        return method
    page = values.get("page_size", 1)
    most = max(page, budget // SHARE // page * page)
    changed: dict[str, Any] = {name: min(values[name], most) for name in ("sink", "window") if name in names}
    if "output_size" in names:
        size = values["unit_size"]
        changed["output_size"] = min(values["output_size"], max(size, budget // 2 // size * size))
    changed["budget"] = budget
    return replace(method, **changed)


@dataclass(frozen=True)
class Contestant:
    """A method under the name that it has in tables."""

    name: str
    method: Method

    @property
    def identity(self) -> dict[str, Any]:
        """All that decides over what it does."""
        return {"method": self.name, "class": type(self.method).__name__, "settings": plain(self.method)}


def plain(method: Method) -> dict[str, Any]:
    """Settings as plain data; parts are told by their names and settings."""
    simple = (int, float, str, bool, type(None))
    return {name: value if isinstance(value, simple) else repr(value) for name, value in method.values().items()}


def contestants(names: list[str], budgets: list[int]) -> list[Contestant]:
    """Methods by name at each budget; those without one stand once.

    Args:
        names: Of METHODS.
        budgets: Budgets.

    Raises:
        SettingsError: There is no such method, or a budget is too small for one.
    """
    found: list[Contestant] = []
    for name in names:
        if name not in METHODS:
            raise SettingsError(f"There is no method {name!r}. The methods are: {', '.join(METHODS)}.")
        for budget in budgets:
            each = Contestant(name, at_budget(METHODS[name](), budget))
            if each not in found:
                found.append(each)
    return found


@dataclass(frozen=True)
class Asked:
    """Tasks: questions with answers.

    Attributes:
        tasks: Names of TASKS.
        contexts: Tokens of the prompts.
        samples: Of each task at each context.
        batch_size: Samples that are answered together.
        seed: Of the samples.
    """

    tasks: tuple[str, ...] = tuple(TASKS)
    contexts: tuple[int, ...] = (4096,)
    samples: int = 8
    batch_size: int = 4
    seed: int = 0

    def __post_init__(self) -> None:
        """Check the names and numbers."""
        for task in self.tasks:
            if task not in TASKS:
                raise SettingsError(f"There is no task {task!r}. The tasks are: {', '.join(TASKS)}.")
        for context in self.contexts:
            check_count("context", context, 1)
        for name in ("samples", "batch_size"):
            check_count(name, getattr(self, name), 1)


@dataclass(frozen=True)
class Fed:
    """Fidelity: texts that are fed token by token.

    Attributes:
        prompts: Tokens of the text before.
        steps: Tokens that are fed.
        texts: Texts of each length; they are a batch.
        seed: Where they begin.
    """

    prompts: tuple[int, ...] = (512, 4096)
    steps: int = 1024
    texts: int = 2
    seed: int = 0

    def __post_init__(self) -> None:
        """Check the numbers."""
        for prompt in self.prompts:
            check_count("prompt", prompt, 1)
        check_count("steps", self.steps, 2)
        check_count("texts", self.texts, 1)
