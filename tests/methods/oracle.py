"""What the slow oracles of the retrieval methods share: a sequence, sums in loops, and the comparison step by step."""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from louiskv import Method
from louiskv.methods.base import AttentionOptions, KVLayer
from louiskv.methods.retrieval_layer import RetrievalLayer

Vector = list[float]

NUM_KV_HEADS = 2
SCALING = 0.4
ITEM_SIZE = 4


@dataclass(frozen=True)
class Sequence:
    """A prompt of `length` tokens and its output: keys and values [Hkv, T, D], queries [steps, Hq, D]."""

    length: int
    keys: Tensor
    values: Tensor
    queries: Tensor

    @property
    def token_size(self) -> int:
        return 2 * self.keys.shape[2] * ITEM_SIZE


def drifting(length: int, steps: int, group_size: int, seed: int, dim: int = 8, drift: float = 0.6) -> Sequence:
    """Random keys, and queries of which each is near the one before."""
    generator = torch.Generator().manual_seed(seed)
    keys, values = (torch.randn(NUM_KV_HEADS, length + steps, dim, generator=generator) for _ in range(2))
    start, moves = torch.randn(2, steps, NUM_KV_HEADS * group_size, dim, generator=generator)
    return Sequence(length, keys, values, start[0] + drift * moves.cumsum(0))


class Oracle(ABC):
    """What one method does on one sequence, one KV head after the other.

    Attributes:
        retrieved: Positions that lie in the retrieved slots of each KV head.
        fetched: Tokens copied host to device, over all KV heads.
        offloaded: Tokens copied device to host.
    """

    def __init__(self, sequence: Sequence) -> None:
        self.keys: list[list[Vector]] = sequence.keys.tolist()
        self.length = sequence.length
        self.retrieved: list[set[int]] = [set() for _ in self.keys]
        self.fetched = self.offloaded = 0

    @abstractmethod
    def step(self, position: int, query: list[list[Vector]]) -> list[set[int]]:
        """The positions that each KV head attends to with the queries of its group."""

    def stay(self, head: int, leaving: list[int], num_slots: int) -> None:
        """Tokens that leave the window are offloaded, and stay resident as far as slots are free."""
        self.offloaded += len(leaving)
        self.retrieved[head] |= set(leaving[: num_slots - len(self.retrieved[head])])

    def retrieve(self, head: int, wanted: set[int]) -> None:
        """Only what is missing is fetched."""
        self.fetched += len(wanted - self.retrieved[head])
        self.retrieved[head] = wanted


def dot(left: Vector, right: Vector) -> float:
    return sum(a * b for a, b in zip(left, right, strict=True))


def bound(query: Vector, high: Vector, low: Vector) -> float:
    return sum(max(q * h, q * low_) for q, h, low_ in zip(query, high, low, strict=True))


def softmax(logits: Vector) -> Vector:
    highest = max(logits, default=0.0)
    mass = [math.exp(logit - highest) for logit in logits]
    return [each / sum(mass) for each in mass]


def mean_share(logits: list[Vector]) -> Vector:
    """The mean over the heads of a group of the softmax over units, from logits [head][unit]."""
    shares = [softmax(row) for row in logits]
    return [sum(column) / len(column) for column in zip(*shares, strict=True)]


def best(scores: Vector) -> list[int]:
    return sorted(range(len(scores)), key=lambda unit: -scores[unit])


def attention(query: Vector, keys: list[Vector], values: list[Vector]) -> Vector:
    weights = softmax([SCALING * dot(query, key) for key in keys])
    return [
        sum(weight * value for weight, value in zip(weights, column, strict=True))
        for column in zip(*values, strict=True)
    ]


def attended_rows(layer: RetrievalLayer, row: int) -> tuple[Tensor, Tensor]:
    """Keys and values [S, D] of the tokens that a row attends to, in their slots or where they lie in the pool."""
    resident, pool = layer.resident, layer.pool
    held = resident.rows[row, resident.bias[row, 0] == 0]
    if resident.in_place:
        place = resident.slot_place[row]
        held = torch.cat([held, pool.rows[row, place[place >= 0].long()]])
    return held[:, : resident.key_dim], held[:, resident.key_dim :]


def attended_positions(layer: RetrievalLayer, keys: Tensor) -> list[set[int]]:
    """The positions of the keys that are attended to, found by the keys themselves."""
    found = []
    for row, known in enumerate(keys):
        position = {tuple(key): place for place, key in enumerate(known.tolist())}
        places = [position[tuple(key)] for key in attended_rows(layer, row)[0].tolist()]
        assert len(places) == len(set(places)), "no token is attended to twice"
        found.append(set(places))
    return found


def started(method: Method, sequence: Sequence) -> RetrievalLayer:
    """A layer that has taken in the prompt."""
    layer = method.layer(0)
    assert isinstance(layer, RetrievalLayer)
    layer.batch_size, layer.num_kv_heads = 1, len(sequence.keys)
    prompt = slice(0, sequence.length)
    layer.absorb(sequence.keys[None, :, prompt], sequence.values[None, :, prompt], None)
    return layer


def decode(layer: KVLayer, sequence: Sequence, step: int) -> Tensor:
    """The output [Hq, D] of one decode step."""
    place = slice(sequence.length + step, sequence.length + step + 1)
    layer.append(sequence.keys[None, :, place], sequence.values[None, :, place])
    return layer.attend(sequence.queries[None, step, :, None], AttentionOptions(scaling=SCALING))[0, :, 0]


def by_group(query: Tensor, num_kv_heads: int = NUM_KV_HEADS) -> list[list[Vector]]:
    """The queries [Hq, D] of one step as [KV head][head of its group][channel]."""
    grouped: list[list[Vector]] = query.unflatten(0, (num_kv_heads, -1)).tolist()
    return grouped


def agree_step_by_step(method: Method, sequence: Sequence, oracle: Oracle) -> RetrievalLayer:
    """Decode with the method and with its oracle: the same positions, the same output, the same traffic."""
    layer = started(method, sequence)
    values: list[list[Vector]] = sequence.values.tolist()
    for step, query in enumerate(sequence.queries):
        got = decode(layer, sequence, step)
        grouped = by_group(query)
        expected = oracle.step(sequence.length + step, grouped)
        assert attended_positions(layer, sequence.keys) == expected
        assert [{place for place in row if place >= 0} for row in layer.attended_positions().tolist()] == expected
        for head, positions in enumerate(expected):
            keys, of_head = ([rows[head][place] for place in sorted(positions)] for rows in (oracle.keys, values))
            out = torch.tensor([attention(each, keys, of_head) for each in grouped[head]])
            size = len(out)
            torch.testing.assert_close(got[head * size : (head + 1) * size], out, atol=1e-4, rtol=1e-4)
        assert layer.traffic.fetched_tokens == oracle.fetched
        assert layer.traffic.offloaded_tokens == oracle.offloaded
    assert layer.traffic.fetched_bytes == oracle.fetched * sequence.token_size
    assert layer.traffic.offloaded_bytes == oracle.offloaded * sequence.token_size
    layer.check_integrity()
    return layer
