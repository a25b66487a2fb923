"""Jobs beside the computation: one worker, in order, and what they raise reaches who collects them."""

import subprocess
import sys
import threading
import weakref
from collections import deque
from functools import partial
from typing import ClassVar

import pytest
import torch

from louiskv.store import background as module
from louiskv.store.background import Background, PromptWork

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
PATIENCE = 20.0


def is_busy(background: Background[int]) -> bool:
    return background.busy


def test_a_job_runs_in_another_thread_and_is_busy_until_it_is_collected() -> None:
    background, gate = Background[int](), threading.Event()

    def job() -> int:
        assert gate.wait(PATIENCE)
        return threading.get_ident()

    assert not is_busy(background)
    background.start(job)
    assert is_busy(background), "start does not wait for the job"
    gate.set()
    assert background.collect() != threading.get_ident()
    assert not is_busy(background)


def test_a_job_that_is_done_is_busy_as_long_as_nobody_collects_it() -> None:
    background, done = Background[int](), threading.Event()

    def job() -> int:
        done.set()
        return 7

    background.start(job)
    assert done.wait(PATIENCE)
    assert is_busy(background)
    assert background.collect() == 7
    assert not is_busy(background)


def test_jobs_of_all_layers_come_one_after_the_other_in_the_order_they_were_started() -> None:
    layers, gate = [Background[int]() for _ in range(5)], threading.Event()
    begun = [threading.Event() for _ in layers]
    order: list[int] = []

    def job(number: int) -> int:
        order.append(number)
        begun[number].set()
        assert gate.wait(PATIENCE)
        return number * number

    for number, background in enumerate(layers):
        background.start(partial(job, number))
    try:
        assert begun[0].wait(PATIENCE)
        assert not begun[1].wait(0.1), "there is one worker"
    finally:
        gate.set()
    results = [background.collect() for background in reversed(layers)]
    assert results == [16, 9, 4, 1, 0], "whatever the order of collecting"
    assert order == [0, 1, 2, 3, 4]


class Done:
    """An event of a GPU that comes when it is waited for."""

    waited: ClassVar[list["Done"]] = []

    def query(self) -> bool:
        return self in Done.waited

    def synchronize(self) -> None:
        Done.waited.append(self)


@pytest.mark.parametrize(("num_bytes", "at_once"), [(4, 2), (10, 1), (11, 1), (0, 4)])
def test_a_prompt_waits_for_the_oldest_where_too_much_is_held(
    num_bytes: int, at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MOST_WAITING", 10)
    monkeypatch.setattr(module._Line, "work", deque())
    monkeypatch.setattr(Done, "waited", [])
    events = [Done() for _ in range(4)]
    for number, event in enumerate(events):
        module._Line.wait_for_room(num_bytes)
        assert Done.waited == events[: max(0, number + 1 - at_once)]
        module._Line.work.append((event, num_bytes))  # type: ignore[arg-type]
    Done.waited[:] = events
    module._Line.wait_for_room(num_bytes)
    assert not module._Line.work, "what is done is forgotten"


def test_what_takes_a_prompt_in_runs_at_once_and_raises_what_it_raises() -> None:
    work, read, made = PromptWork(DEVICE), [torch.ones(1000, device=DEVICE)], []
    work.join(list)
    work.run(lambda: made.append(read.pop() * 2), list(read), 4000)
    work.join(lambda: made)
    assert made[0].tolist() == [2.0] * 1000

    def fails() -> None:
        raise MemoryError("no room")

    with pytest.raises(MemoryError, match="no room"):
        work.run(fails, made, 0)
    work.join(lambda: made)
    work.run(lambda: made.append(made[0] + 1), made, 0)
    work.join(lambda: made)
    assert made[1].tolist() == [3.0] * 1000


def test_collect_raises_what_the_job_raised_and_the_next_job_runs() -> None:
    background, other = Background[int](), Background[int]()

    def fail() -> int:
        raise KeyError("lost")

    background.start(fail)
    other.start(lambda: 1)
    with pytest.raises(KeyError, match="lost"):
        background.collect()
    assert not is_busy(background)
    assert other.collect() == 1
    background.start(lambda: 2)
    assert background.collect() == 2


def test_no_gradients_in_a_job_whatever_the_caller_does() -> None:
    weight = torch.ones(2, requires_grad=True)
    background = Background[tuple[bool, torch.Tensor]]()

    def job() -> tuple[bool, torch.Tensor]:
        return torch.is_grad_enabled(), weight * 2

    with torch.enable_grad():
        background.start(job)
        enabled, result = background.collect()
        assert torch.is_grad_enabled(), "the caller's mode is its own"
    assert not enabled
    assert not result.requires_grad


def test_tensors_of_inference_mode_go_in_and_come_out() -> None:
    background = Background[torch.Tensor]()
    with torch.inference_mode():
        start = torch.arange(4.0)
        background.start(lambda: start + 1)
        held = torch.zeros(4)
        held.copy_(background.collect())
    assert held.tolist() == [1, 2, 3, 4]


def test_one_job_at_a_time() -> None:
    background = Background[int]()
    with pytest.raises(AssertionError, match="there is no job"):
        background.collect()
    background.start(lambda: 1)
    with pytest.raises(AssertionError, match="not collected"):
        background.start(lambda: 2)
    assert background.collect() == 1
    with pytest.raises(AssertionError, match="there is no job"):
        background.collect()


def test_a_job_and_what_it_reads_are_kept_until_it_is_collected() -> None:
    background, kept = Background[int](), torch.ones(1)
    reference = weakref.ref(kept)
    background.start(partial(int, kept))
    # One worker: when the second job is done, so is the first.
    behind = Background[int]()
    behind.start(lambda: 0)
    behind.collect()
    del kept
    assert reference() is not None
    assert background.collect() == 1
    assert reference() is None


FORK = """
import os, signal, threading, torch
from louiskv.store.background import Background
background = Background()
background.start(lambda: 1)
assert background.collect() == 1
gate, other = threading.Event(), Background()
other.start(gate.wait)
child = os.fork()
if child == 0:
    signal.alarm(20)
    background.start(lambda: 2)
    os._exit(background.collect())
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 2
gate.set()
assert other.collect()
"""


def test_a_forked_process_has_a_worker_of_its_own() -> None:
    subprocess.run([sys.executable, "-c", FORK], check=True, timeout=120)
