"""Single operations and their roofline: what is counted, who is measured, what is kept; no time is asserted."""

import json
import os
import statistics
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from louiskv import HostMemoryError, ImplementationError, SettingsError
from louiskv.bench import ops, roofline, timing
from louiskv.bench.memory import Memory
from louiskv.bench.op_cases import CASES, Case
from louiskv.bench.ops import OpsBench, Pace, cases_of, check_fits, check_implementations, cost_of, runnable
from louiskv.bench.roofline import Cost, Limit, Peaks
from louiskv.bench.runner import Known, Record
from louiskv.bench.shapes import Inputs, Shape, Sizes
from louiskv.bench.timing import Others, Timed, take_turns
from louiskv.errors import DeviceMemoryError
from louiskv.ops import OPS
from louiskv.results import Results
from tests.ops.devices import DEVICES

CPU = torch.device("cpu")
TINY = Shape(num_kv_heads=2, group_size=3, dim=16, dtype=torch.float32)
SIZES = Sizes(TINY, context=300, batch=2, budget=112)
SHORT = Pace(0.0, 2)
PEAKS = Peaks(read=100.0, copy=50.0, matmul=1000.0, call=0.01, cache=1000, to_device=10.0, to_host=5.0)

each_case = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)


def case_of(name: str) -> Case:
    return next(case for case in CASES if case.name == name)


def cost(name: str, sizes: Sizes) -> Cost:
    case = case_of(name)
    return cost_of(case, sizes, case.make(Inputs(sizes, CPU)))


@pytest.fixture
def few_copies(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ops, "MAX_COPIES", 3)
    monkeypatch.setattr(roofline, "cache_size", lambda _: 10**6)
    monkeypatch.setattr(roofline, "PRODUCT_SIZES", (16, 16))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "bench.jsonl"


def known(path: Path, shape: Shape = TINY, device: torch.device = CPU) -> Known:
    return Known(Results(path), ops.origin_of("tiny", shape), device)


def test_every_operation_has_a_case() -> None:
    assert {case.op for case in CASES} == set(OPS)
    assert len({case.name for case in CASES}) == len(CASES)
    kinds = {case.variant for case in cases_of(["unit_logits"])}
    assert kinds == {"dot", "sketch", "bound", "one_bit"}
    assert cases_of([]) == list(CASES)
    with pytest.raises(SettingsError, match=r"There is no operation 'nope'\. There are: kmeans, query_cosines"):
        cases_of(["agree", "nope"])


@each_case
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("device", DEVICES)
def test_every_implementation_takes_its_inputs(case: Case, dtype: torch.dtype, device: str) -> None:
    sizes, where = replace(SIZES, shape=replace(TINY, dtype=dtype)), torch.device(device)
    inputs = Inputs(sizes, where)
    given = case.make(inputs)
    assert isinstance(given[0], Tensor) and given[0].dtype == (case.dtype or dtype)
    for name in runnable(case, sizes, where, None):
        case.call(*given, impl=name)
    told, tensors = cost_of(case, sizes, given), [each for each in given if isinstance(each, Tensor)]
    assert 0 < told.read <= sum(each.nbytes for each in tensors)
    assert told.written > 0 and told.flops >= 0
    other = case.make(inputs)
    assert not all(torch.equal(one, two) for one, two in zip(tensors, other, strict=False) if isinstance(two, Tensor))


def test_bytes_and_products_are_counted_as_by_hand() -> None:
    # Four rows, three heads each: 288 tokens in 18 units; 32 slots are retrieved, 8 of which miss their token.
    assert (SIZES.num_rows, SIZES.num_tokens, SIZES.num_units, SIZES.num_retrieved, SIZES.num_missing) == (
        *(4, 288, 18),
        *(32, 8),
    )
    query, means, logits = 4 * 3 * 16 * 4, 4 * 18 * 16 * 4, 4 * 3 * 18 * 4
    assert cost("unit_logits dot", SIZES) == Cost(query + means, logits, 2 * 4 * 3 * 18 * 16)
    tokens = 4 * 8 * (16 + 16) * 4
    assert cost("fetch_rows", SIZES) == Cost(tokens + 4 * 32 * (4 + 1), tokens, 0, "to_device")
    rows, bias = 4 * 112 * (16 + 16) * 4, 4 * 112 * 4
    assert cost("decode_attention resident", SIZES) == Cost(query + rows + bias, query, 2 * 2 * 4 * 3 * 112 * 16)
    in_place = cost("decode_attention in place", SIZES)
    assert in_place == Cost(query + rows + 4 * 80 * 4 + 4 * 32 * 4, query, 2 * 2 * 4 * 3 * 112 * 16)
    keys, counts = 4 * 288 * 16 * 4, 2 * 4 * 8
    assert cost("kmeans", SIZES) == Cost(keys + counts, 4 * 288 * 8, 2 * 4 * 288 * 18 * 16 * 5)
    codes, steps = 4 * 18 * 16, 4 * 18 * 3 * 2
    assert cost("unit_logits sketch", SIZES) == Cost(query + codes + steps, logits, 2 * 4 * 3 * 18 * 16)


@pytest.mark.parametrize(
    ("told", "in_cache", "seconds", "limit", "share"),
    [
        (Cost(300, 0), False, 30.0, "memory", 0.1),
        (Cost(300, 100), False, 40.0, "memory", 0.1),
        (Cost(200, 100), False, 12.0, "memory", 0.5),
        (Cost(300, 0), True, 30.0, "cache", None),
        (Cost(300, 0, 10_000), True, 5.0, "compute", 2.0),
        (Cost(100, 100, 0, "to_device"), False, 40.0, "bus", 0.25),
        (Cost(100, 100, 0, "to_host"), False, 40.0, "bus", 0.5),
        (Cost(1, 0, 1), False, 0.01, "memory", 1.0),
        (Cost(0, 0, 9), True, 0.02, "call", None),
        (Cost(0, 0, 9), True, 0.04, "small", None),
    ],
)
def test_the_roofline_is_the_slowest_of_all(
    told: Cost, in_cache: bool, seconds: float, limit: Limit, share: float | None
) -> None:
    found = told.bound(PEAKS, in_cache, seconds)
    assert found[0] == limit and found[1] == (None if share is None else pytest.approx(share))


def test_without_a_bus_there_is_only_memory() -> None:
    assert Cost(100, 100, 0, "to_host").bound(replace(PEAKS, to_host=None), False, 8.0) == ("memory", 0.5)


@pytest.mark.parametrize("device", DEVICES)
def test_the_machine_is_measured(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    where = torch.device(device)
    assert roofline.cache_size(where) >= 2**18
    monkeypatch.setattr(roofline, "cache_size", lambda _: 2**16)
    monkeypatch.setattr(roofline, "PRODUCT_SIZES", (16, 32))
    machine = roofline.Machine(where, torch.bfloat16, 0.0)
    memory = machine.memory()
    take_turns(memory, 0.0, 3)
    peaks = machine.peaks(*memory)
    assert [len(each.seconds) for each in memory] == [3, 3]
    # A buffer of eight caches, read once or read and written, in the median time.
    assert peaks.read == pytest.approx(8 * 2**16 / statistics.median(memory[0].seconds))
    assert peaks.copy == pytest.approx(16 * 2**16 / statistics.median(memory[1].seconds))
    assert machine.cache == peaks.cache == 2**16 and min(peaks.matmul, peaks.call) > 0
    assert (peaks.to_device is None) == (peaks.to_host is None) == (device == "cpu")


def test_a_cache_of_unknown_size_is_taken_for_a_usual_one(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(roofline, "CPU_CACHES", tmp_path)
    assert roofline.cache_size(CPU) == roofline.CACHE
    for name, size in (("index0", "48K"), ("index3", "16M")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "size").write_text(f"{size}\n")
    assert roofline.cache_size(CPU) == 16 * 2**20


def test_inputs_are_as_a_step_has_them() -> None:
    inputs = Inputs(SIZES, CPU)
    sizes = inputs.unit_sizes()
    assert sizes.shape == (4, 18) and bool((sizes.sum(1) == 288).all()) and len(sizes.unique()) > 5
    slots, wanted = inputs.selections()
    for slot, want in zip(slots.tolist(), wanted.tolist(), strict=True):
        assert len(set(slot)) == len(set(want)) == 32 and len(set(slot) & set(want)) == 24
        assert min(*slot, *want) >= 0 and max(*slot, *want) < 288
    assert inputs.missing().sum(1).tolist() == [8] * 4
    assert inputs.pool("host") is inputs.pool("host") and len(inputs.shared) == 1
    assert torch.equal(Inputs(SIZES, CPU, 1).query(), Inputs(SIZES, CPU, 1).query())
    assert not torch.equal(Inputs(SIZES, CPU, 1).query(), Inputs(SIZES, CPU, 2).query())


def test_sizes_that_make_no_sense_are_refused() -> None:
    with pytest.raises(SettingsError, match=r"budget=95 leaves no unit to retrieve: give at least 96"):
        Sizes(TINY, 300, budget=95)
    with pytest.raises(SettingsError, match=r"A context of 223 tokens is too short for budget=112"):
        Sizes(TINY, 223, budget=112)


def test_copies_are_beyond_the_cache_as_far_as_there_is_room(monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = Inputs(SIZES, CPU)
    given = case_of("fetch_rows").make(inputs)
    told = Cost(400, 100)
    copies: Callable[[int], int] = lambda cache: ops._num_copies(told, given, inputs.shared, cache)  # noqa: E731
    assert [copies(cache) for cache in (1, 1000, 10**9)] == [1, 8, 1024]
    # The pool is the same for all of them.
    own = 4 * 112 * 32 * 4 + 4 * 32 * (4 + 1)
    monkeypatch.setattr(ops, "MAX_BYTES", 3 * own)
    assert copies(10**9) == 3
    monkeypatch.setattr(ops, "MAX_BYTES", 1)
    assert copies(10**9) == 1


@pytest.mark.parametrize("device", DEVICES)
def test_each_call_meets_the_next_copy(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("louiskv.bench.timing.MAX_CALLS", 5)
    met: list[int] = []
    timed = Timed(met.append, 3, torch.device(device), graphed=False)
    timed.sample()
    assert met == [0, 0, 0, 1, 2, 0, 1, 2]
    assert len(timed.seconds) == 1 and timed.how == ("clock" if device == "cpu" else "stream")


def test_all_take_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("louiskv.bench.timing.MAX_CALLS", 1)
    met: list[str] = []

    def timed(name: str) -> Timed:
        return Timed(lambda _: met.append(name), 1, CPU, graphed=False)

    both = [timed("one"), timed("two")]
    met.clear()
    take_turns(both, 0.0, 3)
    assert met == ["one", "two", "two", "one", "one", "two"]


def test_what_others_take_of_the_processors_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    told = tmp_path / "stat"
    monkeypatch.setattr(timing, "STATISTICS", told)
    monkeypatch.setattr("os.cpu_count", lambda: 2)
    monkeypatch.setattr("time.perf_counter", iter([0.0, 10.0, 10.0]).__next__)
    monkeypatch.setattr("time.process_time", iter([0.0, 4.0, 4.0]).__next__)
    second = os.sysconf("SC_CLK_TCK")
    told.write_text(f"cpu  {second} 0 0 {9 * second} 0 0 0 0 0 0\ncpu0 1 2 3\n")
    others = Others()
    # Nine seconds more than before, of which four are our own: five of the twenty that two processors have in ten.
    told.write_text(f"cpu  {4 * second} {second} {2 * second} {99 * second} 0 {second} {second} {second} 5 0\n")
    assert others.share == pytest.approx(0.25)
    told.write_text("")
    assert others.share is None


@pytest.mark.usefixtures("few_copies")
@pytest.mark.parametrize("device", DEVICES)
def test_each_implementation_has_a_record(path: Path, device: str) -> None:
    where, heard = torch.device(device), list[tuple[str, float, float]]()
    bench = OpsBench(known(path, device=where), where, None, SHORT, lambda *told: heard.append(told))
    names = "agree softmax", "fetch_rows", "choose_victims"
    cases = [case_of(name) for name in names]
    other = replace(SIZES, context=400)
    records = list(bench.run(cases, [SIZES, other]))
    assert heard == [*((name, number, 6) for number, name in enumerate(2 * names)), ("", 6, 6)]
    wanted = [
        (case.name, sizes.context, name) for sizes in (SIZES, other) for case in cases for name in impls(case, where)
    ]
    assert [(record["method"], record["context"], record["impl"]) for record in records] == wanted
    for record in records:
        assert record["kind"] == "operation" and record["model"] == "tiny shapes" and record["dtype"] == "float32"
        assert record["samples"] == 2 and record["copies"] == 3 and record["batch"] == 2 and record["budget"] == 112
        assert record["peaks"]["read"] > 0 and record["provenance"]["device"]
        low, high = record["quartiles"]
        assert 0 < low <= record["microseconds"] <= high
        assert record["bytes_per_second"] == pytest.approx(1e6 * record["bytes"] / record["microseconds"])
        assert (record["share"] is None) == (record["limit"] in ("call", "cache", "small"))
        assert record["impl"] != "torch" or record["faster"] == 1
    assert [json.loads(line) for line in path.read_text().splitlines()] == records


def impls(case: Case, device: torch.device) -> list[str]:
    return runnable(case, SIZES, device, None)


@pytest.mark.usefixtures("few_copies")
def test_what_is_known_is_not_measured_again(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def run(shape: Shape = TINY, impl: str | None = "torch", pace: Pace = SHORT) -> list[Record]:
        bench = OpsBench(known(path, shape), CPU, impl, pace)
        return list(bench.run([case_of("agree shares")], [replace(SIZES, shape=shape)]))

    first = run()
    assert len(first) == 1

    def measured(*_: object) -> None:
        raise AssertionError("measured")

    monkeypatch.setattr(OpsBench, "_measured", measured)
    assert run() == first
    for different in (
        {"shape": replace(TINY, dim=8)},
        {"shape": replace(TINY, dtype=torch.bfloat16)},
        {"pace": Pace()},
    ):
        with pytest.raises(AssertionError, match="measured"):
            run(**different)


def test_implementations_are_those_that_run_on_the_device_or_the_named() -> None:
    case = case_of("agree softmax")
    assert "torch" in runnable(case, SIZES, CPU, None) and "triton" not in runnable(case, SIZES, CPU, None)
    assert runnable(case, SIZES, CPU, "torch") == ["torch"]
    assert runnable(case, SIZES, CPU, "cuda") == ["torch"]
    check_implementations(cases_of([]), SIZES, CPU, "cuda,torch")
    with pytest.raises(
        ImplementationError, match=r"fetch_rows cannot run as impl='cuda' on cpu: cuda: it runs on CUDA"
    ):
        check_implementations(cases_of(["agree", "fetch_rows"]), SIZES, CPU, "cuda")
    with pytest.raises(ImplementationError, match=r"agree cannot run as impl='cuda' on cpu: there is no 'cuda'"):
        check_implementations([case], SIZES, CPU, "cuda")


def test_shapes_have_names() -> None:
    assert ops.shape_of("llama8b", None) == Shape(8, 4, 128, torch.bfloat16)
    assert ops.shape_of("smollm2", "float16") == Shape(3, 3, 64, torch.float16)
    with pytest.raises(SettingsError, match=r"There is no shape 'gpt'\. There are: smollm2, llama8b\."):
        ops.shape_of("gpt", None)
    origins = [ops.origin_of("a", TINY), ops.origin_of("a", replace(TINY, dtype=torch.bfloat16))]
    assert (
        origins[0]["model_hash"] == origins[1]["model_hash"] != ops.origin_of("a", replace(TINY, dim=8))["model_hash"]
    )
    assert [each["dtype"] for each in origins] == ["float32", "bfloat16"]


def test_what_does_not_fit_into_memory_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    big = Sizes(TINY, 10**10)
    with pytest.raises(HostMemoryError, match=r"1 x 10000000000 tokens need .* of host memory, but .* can be used"):
        check_fits(big, CPU)
    monkeypatch.setattr(ops, "available", lambda _: Memory(10**18, 0))
    check_fits(big, CPU)
    with pytest.raises(DeviceMemoryError, match="of device memory"):
        check_fits(big, torch.device("cuda"))
