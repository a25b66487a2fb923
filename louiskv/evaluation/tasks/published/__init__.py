"""Published benchmarks, read from files in their published format; nothing is downloaded."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from louiskv.errors import SettingsError, check_count
from louiskv.evaluation.tasks.published.base import Published
from louiskv.evaluation.tasks.published.gpqa import gpqa
from louiskv.evaluation.tasks.published.longbench import longbench
from louiskv.evaluation.tasks.published.mathematics import aime, math500

BENCHMARKS: dict[str, Callable[[Path], Mapping[str, Published[Any]]]] = {
    "longbench": longbench,
    "math500": math500,
    "aime": aime,
    "gpqa": gpqa,
}
# What scores need, by the names that they are imported and installed under.
PACKAGES = {"rouge": "rouge", "rapidfuzz": "rapidfuzz", "jieba": "jieba", "math_verify": "math-verify"}


def published(data: Iterable[tuple[str, Path]], max_new_tokens: int | None = None) -> dict[str, Published[Any]]:
    """Tasks by name, of benchmarks by name with the file or folder of each.

    Args:
        data: Keys of BENCHMARKS, each with where it lies.
        max_new_tokens: Most tokens of an answer; None takes each task's own.

    Raises:
        SettingsError: There is no such benchmark, it is not there, it is not in its published format, or a package is
            missing.
    """
    tasks: dict[str, Published[Any]] = {}
    for name, path in data:
        if name not in BENCHMARKS:
            raise SettingsError(f"There is no benchmark {name!r}. The benchmarks are: {', '.join(BENCHMARKS)}.")
        _check_packages(name)
        found = BENCHMARKS[name](path)
        twice = [task for task in found if task in tasks]
        if twice:
            raise SettingsError(f"The task {twice[0]} is in {path}, and in another file as well: give one of them.")
        tasks |= found
    if max_new_tokens is not None:
        check_count("max_new_tokens", max_new_tokens, 1)
        return {name: replace(task, max_new_tokens=max_new_tokens) for name, task in tasks.items()}
    return tasks


def _check_packages(benchmark: str) -> None:
    missing = [package for module, package in PACKAGES.items() if find_spec(module) is None]
    if missing:
        raise SettingsError(f"Scoring {benchmark} needs {' and '.join(missing)}: pip install 'louiskv[eval]'.")
