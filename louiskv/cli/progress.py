"""A bar for what takes long; on the terminal alone, and gone when it is done."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn


@contextmanager
def progress_bar(console: Console, total: float | None = None) -> Iterator[Callable[..., None]]:
    """A bar; yields what moves it: `advance(description, done)`, and `total` if it was not known before."""
    columns = TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeElapsedColumn()
    bar = Progress(*columns, TimeRemainingColumn(), console=console, transient=True, disable=not console.is_terminal)
    with bar:
        task = bar.add_task("", total=total)

        def advance(description: str, done: float, total: float | None = None) -> None:
            bar.update(task, description=description, completed=done, total=total)

        yield advance
