"""Rows of a cache that come and go: whatever joins and leaves, each generates what it generates alone."""

from copy import copy
from dataclasses import dataclass
from functools import cache

import pytest
import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test
from torch import Tensor
from transformers import PreTrainedModel

from louiskv import LouisKV, Method, UnsupportedModelError, attach
from louiskv.cache import LouisKVCache, passing
from louiskv.ops import ragged
from louiskv.state import tensors_of
from tests.families import tiny
from tests.methods.test_contract import CASES, NAMES, ROUNDED

# Under each only some hold everything: the others must choose, and a row must choose as it does alone.
SETTINGS = {name: pair[1] for name, pair in CASES.items()}
CHUNK = 16


@cache
def model() -> PreTrainedModel:
    return tiny("llama", num_hidden_layers=3)


def ids(length: int, seed: int) -> Tensor:
    return torch.randint(3, 200, (1, length), generator=torch.Generator().manual_seed(seed))


def choose(logits: Tensor) -> Tensor:
    """Greedy; the zero embedding of the padding would tie scores."""
    return logits[:, 1:].argmax(-1) + 1


def feed(kv_cache: LouisKVCache, tokens: Tensor) -> Tensor:
    """Take in a prompt of one sequence in chunks, on top of what the cache holds; logits [1, V] of the next."""
    known = kv_cache.get_seq_length()
    for first in range(0, tokens.shape[1], CHUNK):
        chunk = tokens[:, first : first + CHUNK]
        position = torch.arange(known + first, known + first + chunk.shape[1])[None]
        logits = model()(input_ids=chunk, position_ids=position, **passing(model(), kv_cache)).logits[:, -1]
    return logits


@dataclass
class Sequence:
    """A sequence twice: as one that is put into rows and taken out, and as one that is alone all the time."""

    kv_cache: LouisKVCache
    alone: LouisKVCache
    logits: Tensor
    length: int


class Batch:
    """Sequences in rows, each beside a copy of itself that is alone."""

    def __init__(self, method: Method, kv_cache: LouisKVCache, tolerance: float = 1e-4) -> None:
        self.empty, self.tolerance = kv_cache, tolerance
        self.rows: LouisKVCache | None = None
        self.inside: dict[int, tuple[Sequence, Tensor]] = {}
        self.outside: list[Sequence] = []

    def new_cache(self) -> LouisKVCache:
        return LouisKVCache(self.empty._config, self.empty.method)

    def begin(self, tokens: Tensor) -> None:
        alone = self.new_cache()
        logits = feed(alone, tokens)
        self.outside.append(Sequence(alone.take(0), alone, logits, tokens.shape[1]))

    def join(self, place: int) -> int:
        """Put a sequence that is outside into a row."""
        sequence = self.outside.pop(place)
        if self.rows is None:
            self.rows = sequence.kv_cache.spread([], 1)
        if len(self.inside) == len(self.rows.lengths):
            self.rows.respread(list(range(len(self.inside))), 2 * len(self.inside))
        row = self.rows.lengths.index(0)
        self.rows.put(row, sequence.kv_cache)
        assert sequence.kv_cache.get_seq_length() == 0, "it has moved"
        self.inside[row] = (sequence, sequence.logits)
        return row

    def step(self) -> None:
        assert self.rows is not None
        lengths = self.rows.lengths
        tokens, positions = torch.zeros(len(lengths), dtype=torch.int64), torch.zeros(len(lengths), dtype=torch.int64)
        for row, (_, logits) in self.inside.items():
            tokens[row], positions[row] = choose(logits)[0], lengths[row]
        output = model()(input_ids=tokens[:, None], position_ids=positions[:, None], **passing(model(), self.rows))
        assert output.logits.isfinite().all()
        for row, (sequence, _) in self.inside.items():
            token = tokens[row : row + 1, None]
            alone = model()(
                input_ids=token, position_ids=positions[row, None, None], **passing(model(), sequence.alone)
            )
            expected = alone.logits[:, -1]
            got = output.logits[row : row + 1, -1]
            torch.testing.assert_close(got, expected, atol=self.tolerance, rtol=self.tolerance)
            sequence.logits, sequence.length = expected, sequence.length + 1
            self.inside[row] = (sequence, got)

    def leave(self, row: int) -> None:
        assert self.rows is not None
        self.inside.pop(row)
        self.rows.clear(row)

    def take(self, row: int) -> None:
        """Take a sequence out of its row."""
        assert self.rows is not None
        taken = self.rows.take(row)
        sequence, _ = self.inside.pop(row)
        self.rows.clear(row)
        assert taken.get_seq_length() == sequence.length
        taken.check_integrity()
        sequence.kv_cache = taken
        self.outside.append(sequence)

    def shrink(self) -> None:
        assert self.rows is not None
        held = sorted(self.inside)
        self.rows = self.rows.spread(held, len(held) + 1)
        self.inside = {place: self.inside[row] for place, row in enumerate(held)}

    def go_on(self, place: int, tokens: Tensor) -> None:
        """Take in the next turn's prompt, as the one does that was never in a row."""
        sequence = self.outside[place]
        sequence.logits = feed(sequence.alone, tokens)
        got = feed(sequence.kv_cache, tokens)
        torch.testing.assert_close(got, sequence.logits, atol=self.tolerance, rtol=self.tolerance)
        sequence.length += tokens.shape[1]

    def check(self) -> None:
        if self.rows is None:
            return
        self.rows.check_integrity()
        held = [self.rows.lengths[row] for row in sorted(self.inside)]
        assert held == [self.inside[row][0].length for row in sorted(self.inside)]
        assert sum(self.rows.lengths) == sum(held)


class Turns(RuleBasedStateMachine):
    """Sequences join, step, leave, are taken out, and go on."""

    method: Method
    kv_cache: LouisKVCache
    tolerance: float

    def __init__(self) -> None:
        super().__init__()
        self.batch = Batch(self.method, self.kv_cache, self.tolerance)
        self.seed = 0

    def next_ids(self, length: int) -> Tensor:
        self.seed += 1
        return ids(length, self.seed)

    @precondition(lambda self: len(self.batch.outside) < 4)
    @rule(length=st.integers(2, 70))
    def begin(self, length: int) -> None:
        self.batch.begin(self.next_ids(length))

    @precondition(lambda self: self.batch.outside and len(self.batch.inside) < 4)
    @rule(place=st.integers(0, 3))
    def join(self, place: int) -> None:
        self.batch.join(place % len(self.batch.outside))

    @precondition(lambda self: self.batch.inside)
    @rule(number=st.integers(1, 13))
    def step(self, number: int) -> None:
        for _ in range(number):
            self.batch.step()

    @precondition(lambda self: self.batch.inside)
    @rule(place=st.integers(0, 3))
    def leave(self, place: int) -> None:
        self.batch.leave(sorted(self.batch.inside)[place % len(self.batch.inside)])

    @precondition(lambda self: self.batch.inside and len(self.batch.outside) < 4)
    @rule(place=st.integers(0, 3))
    def take(self, place: int) -> None:
        self.batch.take(sorted(self.batch.inside)[place % len(self.batch.inside)])

    @precondition(lambda self: self.batch.outside)
    @rule(place=st.integers(0, 3), length=st.integers(1, 30))
    def go_on(self, place: int, length: int) -> None:
        self.batch.go_on(place % len(self.batch.outside), self.next_ids(length))

    @precondition(lambda self: self.batch.inside)
    @rule()
    def shrink(self) -> None:
        self.batch.shrink()

    @invariant()
    def holds(self) -> None:
        self.batch.check()


@pytest.mark.parametrize("readable", [True, False], ids=["readable", "unreadable"])
@pytest.mark.parametrize("name", NAMES)
def test_whatever_joins_and_leaves_a_row_is_what_it_is_alone(
    name: str, readable: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not readable:
        # As on a GPU, where the host does not see what it would have to wait for.
        monkeypatch.setattr(ragged, "READABLE", set())
    with torch.no_grad(), attach(model(), SETTINGS[name]) as kv_cache:

        class Machine(Turns):
            pass

        Machine.method, Machine.kv_cache, Machine.tolerance = SETTINGS[name], kv_cache, ROUNDED.get(name, 1e-4)
        run_state_machine_as_test(
            Machine, settings=settings(deadline=None, max_examples=6, stateful_step_count=25, derandomize=True)
        )


# What follows is of rows as such, whatever the method: these have every kind of part between them.
SOME = ["full", "full_offloaded", "louiskv", "louiskv_plus", "freekv", "keepkv", "razor_attention", "per query head"]


def a_batch(method: Method, kv_cache: LouisKVCache, lengths: tuple[int, ...] = (60, 20, 40)) -> Batch:
    batch = Batch(method, kv_cache)
    for seed, length in enumerate(lengths):
        batch.begin(ids(length, seed))
        batch.join(0)
    return batch


@pytest.mark.parametrize("name", sorted(set(NAMES) - {"oracle_top_k", "full_offloaded"}))
def test_a_row_is_written_where_it_lies(name: str) -> None:
    with torch.no_grad(), attach(model(), SETTINGS[name]) as kv_cache:
        batch = a_batch(SETTINGS[name], kv_cache)
        assert batch.rows is not None
        batch.step()
        assert all(layer.state.waits_for_nothing for layer in batch.rows.managed), "a step can be captured"
        batch.rows.reserve(20)
        batch.leave(1)
        batch.step()
        states = [layer.state for layer in batch.rows.managed]
        for state in states:
            # Who copies waits for what is still made beside the step.
            copy(state)
        before = {path: tensor for path, _, tensor in tensors_of(states)}
        others = {path: tensor.clone() for path, tensor in before.items()}
        batch.begin(ids(30, 9))
        batch.join(0)
        after = {path: tensor for path, _, tensor in tensors_of(states)}
    assert before.keys() == after.keys()
    for path, tensor in after.items():
        assert tensor.shape == before[path].shape, path
        if "trigger" not in path and "telemetry" not in path and "transfer" not in path:
            assert tensor.data_ptr() == before[path].data_ptr(), path
        size = len(others[path]) // 4 if tensor.dim() else 0
        rows = [row for row in range(4 * size) if row // size != 1] if size else []
        # Slots that an idle row left open are closed until the next step.
        if tensor.dim() and "bias" not in path and "telemetry" not in path:
            assert torch.equal(tensor[rows].nan_to_num(0.5), others[path][rows].nan_to_num(0.5)), path


@pytest.mark.parametrize("name", SOME)
def test_idle_rows_keep_nothing_and_count_for_nothing(name: str) -> None:
    with torch.no_grad(), attach(model(), SETTINGS[name]) as kv_cache:
        full, sparse = (a_batch(SETTINGS[name], kv_cache) for _ in range(2))
        assert full.rows is not None and sparse.rows is not None
        full.rows.respread([0, 1, 2], 3)
        sparse.rows.respread([0, 1, 2], 7)
        for _ in range(70):
            full.step()
            sparse.step()
        reports = [batch.rows.report() for batch in (full, sparse) if batch.rows is not None]
    for one, other in zip(reports[0].layers, reports[1].layers, strict=True):
        assert one.retrieval_rate == pytest.approx(other.retrieval_rate)
        assert (one.ahead_rate is None) == (other.ahead_rate is None)
        assert one.ahead_rate == pytest.approx(other.ahead_rate)
        assert one.hit_rate == pytest.approx(other.hit_rate)
        assert one.fetched_bytes == other.fetched_bytes
        assert one.offloaded_bytes == other.offloaded_bytes
        assert one.segment_sizes == other.segment_sizes
        for tier in ("index", "host", "seen"):
            assert getattr(one.tiers, tier).tokens == getattr(other.tiers, tier).tokens
    assert reports[0].output_tokens == reports[1].output_tokens == 3 * 70


def test_what_cannot_be_done_with_rows_says_so() -> None:
    with torch.no_grad(), attach(model(), LouisKV(budget=400)) as kv_cache:
        batch = a_batch(kv_cache.method, kv_cache)
        assert batch.rows is not None
        rows = batch.rows
        with pytest.raises(UnsupportedModelError, match="each step gives each of them one token"):
            model()(input_ids=torch.zeros(4, 3, dtype=torch.int64), **passing(model(), rows))
        with pytest.raises(UnsupportedModelError, match="`take` one out and crop"):
            rows.crop(-1)
        with pytest.raises(UnsupportedModelError, match="`take` one out instead"):
            rows.reorder_cache(torch.LongTensor([1, 0, 2, 3]))
    sliding = tiny("gemma3_text")
    with torch.no_grad(), attach(sliding, LouisKV(budget=400)) as kv_cache:
        sliding(ids(40, 0), **passing(sliding, kv_cache))
        with pytest.raises(UnsupportedModelError, match="DynamicSlidingWindowLayer"):
            kv_cache.spread([0], 2)
