"""Decode steps, timed as the device has them."""

import time
from itertools import pairwise

import torch
from torch import Tensor

from louiskv.captured import CapturedStep, EagerStep
from louiskv.counters import PHASES, Clock

# Steps that are not timed, at the least and at the most: they compile and tune, and capture each kind of step.
WARM_UP = (8, 96)
# Seconds after which neither goes on.
PATIENCE = 3.0


def warm_up(step: EagerStep) -> int:
    """Run steps until every kind that comes within some steps was captured; how many."""
    started, number = time.perf_counter(), 0
    while number < WARM_UP[1]:
        step.run(step.tokens[:, 0])
        number += 1
        wait(step.tokens.device)
        settled = number >= WARM_UP[0] and (not isinstance(step, CapturedStep) or step.num_kinds > 1)
        if settled or time.perf_counter() - started > PATIENCE:
            break
    return number


def steady(step: EagerStep, num_steps: int) -> list[float]:
    """Seconds of each of so many steps, fewer if that takes long; anew if a kind of step is new among them."""
    (first,) = timed(step, 1)
    num_steps = max(1, min(num_steps, int(PATIENCE / first)))
    while True:
        before = _kinds(step)
        seconds = timed(step, num_steps)
        if _kinds(step) == before:
            return seconds


def _kinds(step: EagerStep) -> tuple[int, int]:
    return (step.num_captured, step.num_seen) if isinstance(step, CapturedStep) else (0, 0)


def spent(clocks: list[Clock]) -> dict[str, float]:
    """Seconds of each phase, over all layers."""
    read = [clock.read() for clock in clocks]
    return {phase: sum(each[phase] for each in read) for phase in PHASES}


def timed_phases(step: EagerStep, clocks: list[Clock]) -> float:
    """Seconds of a step, its phases counted."""
    if not isinstance(step, CapturedStep):
        return timed(step, 1)[0]
    since = torch.cuda.Event(enable_timing=True)
    since.record()
    (seconds,) = timed(step, 1)
    for clock in clocks:
        clock.replayed(since)
    return seconds


def timed(step: EagerStep, num_steps: int) -> list[float]:
    """Seconds of each step, as the device has it; on a CPU as the clock has it."""
    tokens: Tensor = step.tokens[:, 0].clone()
    if tokens.device.type != "cuda":
        seconds = []
        for _ in range(num_steps):
            started = time.perf_counter()
            step.run(tokens)
            seconds.append(time.perf_counter() - started)
        return seconds
    marks = [torch.cuda.Event(enable_timing=True) for _ in range(num_steps + 1)]
    wait(tokens.device)
    marks[0].record()
    for mark in marks[1:]:
        step.run(tokens)
        mark.record()
    wait(tokens.device)
    return [begin.elapsed_time(end) / 1000 for begin, end in pairwise(marks)]


def wait(device: torch.device) -> None:
    """Wait for all that a GPU was told to do."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def reset_peak(device: torch.device) -> None:
    """Forget the most that a GPU has held."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
