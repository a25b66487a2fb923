"""Times of single operations, their implementations in turns, beside what the machine could do at best."""

import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from math import ceil
from typing import Any

import torch
from torch import Tensor

from louiskv.bench.memory import available
from louiskv.bench.op_cases import CASES, Case
from louiskv.bench.roofline import Cost, Machine, Peaks
from louiskv.bench.runner import Known, Record
from louiskv.bench.shapes import SHAPES, Inputs, Shape, Sizes
from louiskv.bench.timing import Others, Timed, take_turns
from louiskv.errors import DeviceMemoryError, HostMemoryError, SettingsError
from louiskv.ops import OPS
from louiskv.ops.dispatch import choose
from louiskv.results import key_of
from louiskv.telemetry import format_bytes

KIND = "operation"
REFERENCE = "torch"
# All copies of the inputs together take so many times the last cache.
BEYOND = 4
MAX_COPIES = 1024
MAX_BYTES = 512 * 2**20
# Pools that the largest case, with what its reference computes in passing, is as large as.
PASSING = 3


@dataclass(frozen=True)
class Pace:
    """How long is measured.

    Attributes:
        seconds: Of the turns of one case; of each figure of the machine a fifth.
        turns: Times of each implementation at the least.
    """

    seconds: float = 1.0
    turns: int = 5


QUICK = Pace(0.1, 3)


def cases_of(ops: Sequence[str]) -> list[Case]:
    """The cases of some operations, of all if none are named.

    Raises:
        SettingsError: There is no such operation.
    """
    for name in ops:
        if name not in OPS:
            raise SettingsError(f"There is no operation {name!r}. There are: {', '.join(OPS)}.")
    return [case for case in CASES if not ops or case.op in ops]


def shape_of(name: str, dtype: str | None) -> Shape:
    """A shape by its name, with another type of its numbers if one is given.

    Raises:
        SettingsError: There is no such shape.
    """
    if name not in SHAPES:
        raise SettingsError(f"There is no shape {name!r}. There are: {', '.join(SHAPES)}.")
    return SHAPES[name] if dtype is None else replace(SHAPES[name], dtype=getattr(torch, dtype))


def origin_of(name: str, shape: Shape) -> dict[str, str]:
    """What stands in a record where the model stands: there is none, but its shapes."""
    sizes = {"num_kv_heads": shape.num_kv_heads, "group_size": shape.group_size, "dim": shape.dim}
    dtype = str(shape.dtype).removeprefix("torch.")
    return {"model": f"{name} shapes", "model_hash": key_of({"shape": sizes}), "dtype": dtype}


def runnable(case: Case, sizes: Sizes, device: torch.device, impl: str | None) -> list[str]:
    """Implementations of a case that can run: those that are taken on this device, or the named, and the reference."""
    like = torch.empty(0, dtype=case.dtype or sizes.shape.dtype, device=device)
    named = None if impl is None else impl.split(",")
    return [
        each.name
        for each in OPS[case.op]
        if each.name == REFERENCE
        or (each.declines(like) is None if named is None else each.name in named and each.refusal(like) is None)
    ]


def check_implementations(cases: Sequence[Case], sizes: Sizes, device: torch.device, impl: str | None) -> None:
    """Refuse names of implementations of which none can run in any of the cases.

    Raises:
        ImplementationError: So it is; says why.
    """
    if impl is None or any(set(impl.split(",")) & set(runnable(case, sizes, device, impl)) for case in cases):
        return
    case = next((case for case in cases if {each.name for each in OPS[case.op]} & set(impl.split(","))), cases[0])
    choose(case.op, OPS[case.op], impl, torch.empty(0, dtype=case.dtype or sizes.shape.dtype, device=device))


def check_fits(sizes: Sizes, device: torch.device) -> None:
    """Refuse sizes that memory has no room for.

    Raises:
        HostMemoryError: They do not fit into the host's memory.
        DeviceMemoryError: They do not fit into the device's memory.
    """
    need, room = PASSING * sizes.token_bytes(sizes.num_tokens) + 2 * MAX_BYTES, available(device)
    if need > room.host:
        raise HostMemoryError(_lacking(sizes, need, "host", room.host))
    if device.type == "cuda" and need > room.device:
        raise DeviceMemoryError(_lacking(sizes, need, "device", room.device))


def _lacking(sizes: Sizes, need: int, place: str, room: int) -> str:
    return (
        f"{sizes.batch} x {sizes.context} tokens need {format_bytes(need)} of {place} memory, but {format_bytes(room)} "
        "can be used. Nothing was measured. Use a shorter --context or a smaller --batch."
    )


class OpsBench:
    """Measures cases; those that are known already are not measured again.

    Attributes:
        known: Where records go.
        device: Where operations run.
        impl: Names of the implementations beside the reference; None for all that are taken on the device.
        pace: How long is measured.
        progress: Called with what runs, and how much of how much is done.
    """

    def __init__(
        self,
        known: Known,
        device: torch.device,
        impl: str | None = None,
        pace: Pace = Pace(),
        progress: Callable[[str, float, float], None] = lambda *_: None,
    ) -> None:
        self.known, self.device, self.impl, self.pace, self.progress = known, device, impl, pace, progress
        self._machine: Machine | None = None

    def run(self, cases: Sequence[Case], all_sizes: Sequence[Sizes]) -> Iterator[Record]:
        """Measure every case at all sizes; yields the records of each case, known ones included."""
        total = len(cases) * len(all_sizes)
        for number, (sizes, case) in enumerate((sizes, case) for sizes in all_sizes for case in cases):
            self.progress(case.name, number, total)
            yield from self._records(case, sizes)
        self.progress("", total, total)

    def _records(self, case: Case, sizes: Sizes) -> list[Record]:
        names = runnable(case, sizes, self.device, self.impl)
        who = [self._identity(case, sizes, name) for name in names]
        same = {"context": sizes.context, "batch": sizes.batch, "pace": asdict(self.pace)}
        known = self.known.find(KIND, same, who)
        if known is not None:
            return known
        if self._machine is None:
            self._machine = Machine(self.device, sizes.shape.dtype, self.pace.seconds / 5)
        figures = self._measured(case, sizes, names, self._machine)
        return [self.known.add(KIND, same, each, figures[name]) for each, name in zip(who, names, strict=True)]

    def _identity(self, case: Case, sizes: Sizes, name: str) -> Record:
        no_group: Record = {"settings": {}, "group": None, "family": None}
        return {"method": case.name, "budget": sizes.budget, "class": case.op, **no_group, "impl": name}

    @torch.inference_mode()
    def _measured(self, case: Case, sizes: Sizes, names: Sequence[str], machine: Machine) -> dict[str, Record]:
        inputs = Inputs(sizes, self.device)
        first = case.make(inputs)
        cost = cost_of(case, sizes, first)
        num_copies = _num_copies(cost, first, inputs.shared, machine.cache)
        copies = [first, *(case.make(inputs) for _ in range(num_copies - 1))]
        timed = {name: self._timed(case, copies, name) for name in names}
        memory, others = machine.memory(), Others()
        take_turns([*timed.values(), *memory], self.pace.seconds, self.pace.turns)
        peaks, in_cache = machine.peaks(*memory), num_copies * cost.bytes < 2 * machine.cache
        shared = {"copies": num_copies, "in_cache": in_cache, "others": others.share, "peaks": asdict(peaks)}
        base = statistics.median(timed[REFERENCE].seconds)
        return {name: {**shared, **_figures(each, cost, peaks, in_cache, base)} for name, each in timed.items()}

    def _timed(self, case: Case, copies: Sequence[tuple[Any, ...]], name: str) -> Timed:
        # References branch on values and wait for them, which a graph cannot.
        return Timed(lambda copy: case.call(*copies[copy], impl=name), len(copies), self.device, name != REFERENCE)


def cost_of(case: Case, sizes: Sizes, inputs: tuple[Tensor | int, ...]) -> Cost:
    """What a case does at the least; unless it says otherwise, it reads its inputs and writes its outputs."""
    if case.moved is not None:
        read, written = case.moved(sizes)
    else:
        made = case.call(*inputs, impl=REFERENCE)
        read = sum(each.nbytes for each in inputs if isinstance(each, Tensor))
        written = sum(each.nbytes for each in (made if isinstance(made, tuple) else (made,)))
    return Cost(read, written, case.flops(sizes), case.bus)


def _num_copies(cost: Cost, inputs: tuple[Tensor | int, ...], shared: set[int], cache: int) -> int:
    """As many as leave no cache with any of what the next call touches, as far as there is room for them."""
    memory = {
        each.untyped_storage().data_ptr(): each.untyped_storage().nbytes()
        for each in inputs
        if isinstance(each, Tensor)
    }
    own = sum(size for begin, size in memory.items() if begin not in shared)
    return max(1, min(MAX_COPIES, ceil(BEYOND * cache / cost.bytes), MAX_BYTES // own))


def _figures(timed: Timed, cost: Cost, peaks: Peaks, in_cache: bool, base: float) -> Record:
    low, median, high = statistics.quantiles(timed.seconds, n=4, method="inclusive")
    limit, share = cost.bound(peaks, in_cache, median)
    return {
        "microseconds": 1e6 * median,
        "quartiles": [1e6 * low, 1e6 * high],
        "samples": len(timed.seconds),
        "timed_by": timed.how,
        "faster": base / median,
        "bytes": cost.bytes,
        "flops": cost.flops,
        "bytes_per_second": cost.bytes / median,
        "flops_per_second": cost.flops / median,
        "limit": limit,
        "share": share,
        "seconds": sum(timed.seconds),
    }
