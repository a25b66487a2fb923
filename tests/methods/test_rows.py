"""Rows of a cache that come and go: whatever joins and leaves, each generates what it generates alone."""

from dataclasses import dataclass, field
from functools import cache

import pytest
import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test
from torch import Tensor
from transformers import PreTrainedModel

from louiskv import Method, attach
from louiskv.cache import LouisKVCache, passing
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
    """What a sequence is fed, and what has come out."""

    kv_cache: LouisKVCache
    logits: Tensor
    length: int
    seen: list[Tensor] = field(default_factory=list)


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
        self.outside.append(Sequence(alone, logits, tokens.shape[1]))

    def join(self, place: int) -> int:
        """Put a sequence that is outside into a row."""
        sequence = self.outside.pop(place)
        if self.rows is None:
            self.rows = sequence.kv_cache.spread([], 1)
        if len(self.inside) == len(self.rows.lengths):
            grown = self.rows.spread(list(range(len(self.inside))), 2 * len(self.inside))
            grown.take_over(self.rows)
            self.rows = grown
        row = self.rows.lengths.index(0)
        alone = sequence.kv_cache
        self.rows.put(row, alone.take(0))
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
                input_ids=token, position_ids=positions[row, None, None], **passing(model(), sequence.kv_cache)
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
        """Take a sequence out of its row; from now on what it is alone is what came out."""
        assert self.rows is not None
        taken = self.rows.take(row)
        sequence, _ = self.inside.pop(row)
        self.rows.clear(row)
        assert taken.get_seq_length() == sequence.length
        taken.check_integrity()
        self.outside.append(Sequence(taken, sequence.logits, sequence.length))

    def shrink(self) -> None:
        assert self.rows is not None
        held = sorted(self.inside)
        self.rows = self.rows.spread(held, len(held) + 1)
        self.inside = {place: self.inside[row] for place, row in enumerate(held)}

    def go_on(self, place: int, tokens: Tensor) -> None:
        """Take in the next turn's prompt: as a sequence that was never in a row does."""
        sequence = self.outside[place]
        sequence.logits = feed(sequence.kv_cache, tokens)
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


@pytest.mark.parametrize("name", NAMES)
def test_whatever_joins_and_leaves_a_row_is_what_it_is_alone(name: str) -> None:
    with torch.no_grad(), attach(model(), SETTINGS[name]) as kv_cache:

        class Machine(Turns):
            pass

        Machine.method, Machine.kv_cache, Machine.tolerance = SETTINGS[name], kv_cache, ROUNDED.get(name, 1e-4)
        run_state_machine_as_test(
            Machine, settings=settings(deadline=None, max_examples=60, stateful_step_count=30, derandomize=True)
        )
