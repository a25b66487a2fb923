"""A batch on a cluster, seen from where it was called: what comes of blocks, and how errors are told."""

import logging
import pickle
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
import ray.data
from ray.data import DataContext
from ray.exceptions import ActorDiedError, ActorUnavailableError, UserCodeException

from louiskv.errors import EngineStoppedError
from louiskv.methods.full import Full
from louiskv.serving.batch.lines import Line
from louiskv.serving.ray import batch
from louiskv.serving.ray.batch import answers_of
from louiskv.serving.ray.cluster import ClusterError
from louiskv.serving.ray.fleet import Fleet
from louiskv.serving.ray.replica import Blueprint

BLUEPRINT = Blueprint("model", "name", Full(), engine=(("rows", 2),))
LINES = [Line(number, None, reason="wrong") for number in range(1, 6)]
TRACEBACK = """KeyError: 1

During handling of the above exception, another exception occurred:

RuntimeError: the device is gone

The above exception was the direct cause of the following exception:

ray::MapWorker(MapBatches(Answering)).submit()
ray.exceptions.UserCodeException: UDF failed to process a data block.
To change retry attempts, configure `ray.data.DataContext.get_current()`."""


class Mapped:
    """Blocks of lines, and what becomes of each: its lines, with an error in it, or an error."""

    def __init__(self, blocks: Sequence[bytes], error: Exception | None) -> None:
        self.blocks, self.error = [pickle.loads(block) for block in blocks], error

    def iter_rows(self) -> Iterator[dict[str, bytes]]:
        for block in self.blocks:
            told: list[Any] = [{"line": line.number} for line in block]
            if isinstance(self.error, EngineStoppedError) and block[0].number == 3:
                told[0] = self.error
            yield {"told": pickle.dumps(told)}
        if self.error is not None:
            raise self.error


@pytest.fixture(autouse=True)
def _as_it_was(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    log = logging.getLogger("ray.data")
    # Ray Data warns of settings that it makes itself.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        level, context = log.level, DataContext.get_current()
    monkeypatch.setattr(context, "enable_progress_bars", context.enable_progress_bars)
    yield
    log.setLevel(level)


def answered(monkeypatch: pytest.MonkeyPatch, error: Exception | None) -> Iterator[int]:
    monkeypatch.setattr(batch, "_mapped", lambda blocks, *_: Mapped(blocks, error))
    return (told["line"] for told in answers_of(LINES, BLUEPRINT, Fleet()))


def test_every_line_of_every_block_comes(monkeypatch: pytest.MonkeyPatch) -> None:
    assert list(answered(monkeypatch, None)) == [1, 2, 3, 4, 5]


def test_a_line_without_an_answer_loses_no_other_of_its_block(monkeypatch: pytest.MonkeyPatch) -> None:
    come = answered(monkeypatch, EngineStoppedError("It was stopped."))
    assert [next(come) for _ in range(3)] == [1, 2, 4]
    with pytest.raises(EngineStoppedError, match="It was stopped."):
        next(come)


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (
            ActorUnavailableError("it is gone", None),
            r"lost 4 times over the same lines, or 9 times in all \(The actor .* is unavailable: it is gone\.",
        ),
        (ActorDiedError(), r"lost 4 times .* \(The actor died unexpectedly before finishing this task\)\."),
        (UserCodeException(TRACEBACK), r"A replica had an error of its own \(RuntimeError: the device is gone\)\."),
        (UserCodeException("no more"), r"A replica had an error of its own \(no more\)\."),
        (ConnectionError("no route"), r"The cluster is lost \(no route\)\."),
    ],
)
def test_what_ray_says_is_told_in_one_line(monkeypatch: pytest.MonkeyPatch, error: Exception, message: str) -> None:
    with pytest.raises(ClusterError, match=f"^.*{message}.* The same call goes on") as raised:
        list(answered(monkeypatch, error))
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("gpus", [0, 1])
def test_actors_begin_anew_so_often_and_no_more(monkeypatch: pytest.MonkeyPatch, gpus: int) -> None:
    given: dict[str, Any] = {}
    real = ray.data.Dataset.map_batches

    class Items:
        def map_batches(self, *arguments: Any, **settings: Any) -> Any:
            given.update(settings)
            return real.__get__(self)(*arguments, **settings)

        def map_batches_internal(self, *_: Any, **settings: Any) -> dict[str, Any]:
            return settings

    monkeypatch.setattr(ray.data, "from_items", lambda *_, **__: Items())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        taken: Any = batch._mapped([b""], BLUEPRINT, Fleet(gpus=gpus))
    assert (taken["max_restarts"], taken["max_task_retries"], taken["num_gpus"]) == (8, 3, gpus)
