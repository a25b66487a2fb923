"""What the slow oracles of the eviction methods share: tokens in a list, attention in loops, and the comparison."""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from louiskv import Method
from louiskv.methods.base import AttentionOptions, KVLayer
from louiskv.methods.eviction_layer import EvictionLayer
from tests.methods.oracle import NUM_KV_HEADS, SCALING, Vector, dot

# Against float32 sums in another order, for entries of order 1.
TOLERANCE = 1e-4


@dataclass(frozen=True)
class Talk:
    """Prompts and outputs in turn, by their lengths: keys and values [Hkv, T, D], queries [T, Hq, D]."""

    turns: tuple[tuple[int, int], ...]
    keys: Tensor
    values: Tensor
    queries: Tensor
    options: AttentionOptions


def random_talk(
    turns: list[tuple[int, int]], group_size: int, seed: int, *, dim: int = 6, plain: bool = True, alike: bool = False
) -> Talk:
    """Random numbers; keys of one direction where they are to be alike, softcap and attention sinks if not plain."""
    generator = torch.Generator().manual_seed(seed)
    length = sum(map(sum, turns))
    keys, values = torch.randn(2, NUM_KV_HEADS, length, dim, generator=generator)
    queries = 1.5 * torch.randn(length, NUM_KV_HEADS * group_size, dim, generator=generator)
    sinks = torch.randn(NUM_KV_HEADS * group_size, generator=generator)
    options = AttentionOptions(SCALING) if plain else AttentionOptions(SCALING, 3.0, sinks)
    return Talk(tuple(turns), keys + 2 if alike else keys, values, queries, options)


@dataclass(eq=False)
class Token:
    """One that is kept, what each query that was looked at gave it, by head, and how many tokens it stands for."""

    position: int
    key: Vector
    value: Vector
    votes: float = 1.0
    weights: list[Vector] = field(default_factory=list)
    logits: list[Vector] = field(default_factory=list)


class EvictionOracle(ABC):
    """What one method keeps of one KV head, and what the heads of its group see.

    Attributes:
        sink: First tokens that are never dropped.
        window: Newest tokens that are not, the one that comes included.
        prompt_window: The same when a prompt has come.
        watched: Newest queries of a prompt that are looked at.
    """

    sink = 0
    watched = 0

    def __init__(self, budget: int, window: int) -> None:
        self.budget, self.window, self.prompt_window = budget, window, window
        self.tokens: list[Token] = []
        self.length = 0
        self.softcap: float | None = None
        self.attention_sinks: list[float] = []

    @abstractmethod
    def score(self, token: Token) -> float:
        """How much it matters."""

    def watch(self, options: AttentionOptions, head: int, group_size: int) -> None:
        """See logits as the model does."""
        self.softcap = options.softcap
        if options.attention_sinks is not None:
            self.attention_sinks = options.attention_sinks.tolist()[head * group_size : (head + 1) * group_size]

    def prompt(self, queries: list[list[Vector]], keys: list[Vector], values: list[Vector]) -> list[list[Vector]]:
        """Outputs [token][head of the group] of a prompt."""
        pairs = enumerate(zip(keys, values, strict=True), self.length)
        new = [Token(position, key, value) for position, (key, value) in pairs]
        outs = []
        for place, group in enumerate(queries):
            looks = place >= len(queries) - self.watched
            outs.append(self.attend(group, self.tokens + new[: place + 1], self.length + place if looks else None))
        self.take_in(new)
        self.make_room(0, self.prompt_window)
        return outs

    def step(self, group: list[Vector], key: Vector, value: Vector) -> list[Vector]:
        """Outputs of one decode step by head."""
        self.length += 1
        self.make_room(1, self.window)
        self.tokens.append(Token(self.length - 1, key, value))
        return self.attend(group, self.tokens, self.length - 1)

    def attend(self, group: list[Vector], tokens: list[Token], time: int | None) -> list[Vector]:
        """Softmax over tokens with `ln votes` on the logits; noted if there is a time."""
        all_weights, all_logits = [], []
        for head, query in enumerate(group):
            logits = [SCALING * dot(query, token.key) for token in tokens]
            if self.softcap is not None:
                logits = [self.softcap * math.tanh(logit / self.softcap) for logit in logits]
            mass = [token.votes * math.exp(logit) for token, logit in zip(tokens, logits, strict=True)]
            total = sum(mass) + (math.exp(self.attention_sinks[head]) if self.attention_sinks else 0)
            all_weights.append([each / total for each in mass])
            all_logits.append(logits)
        if time is not None:
            self.note(tokens, all_weights, all_logits, time)
        columns = list(zip(*(token.value for token in tokens), strict=True))
        return [[dot(weights, list(column)) for column in columns] for weights in all_weights]

    def note(self, tokens: list[Token], weights: list[Vector], logits: list[Vector], time: int) -> None:
        """What a query at this position gave, [head of the group][token]."""
        for place, token in enumerate(tokens):
            token.weights.append([row[place] for row in weights])
            token.logits.append([row[place] for row in logits])

    def take_in(self, new: list[Token]) -> None:
        """The tokens of a prompt, before any is dropped."""
        self.tokens += new
        self.length += len(new)

    def make_room(self, num_new: int, window: int) -> None:
        """Drop the tokens of least score, the oldest first among equals."""
        excess = len(self.tokens) + num_new - self.budget
        if excess <= 0:
            return
        may_go = [token for token in self.tokens if self.sink <= token.position < self.length - window]
        lost = sorted(may_go, key=lambda token: (self.score(token), token.position))[:excess]
        self.drop(lost)

    def drop(self, lost: list[Token]) -> None:
        """They are gone."""
        self.tokens = [token for token in self.tokens if token not in lost]


def mean(numbers: list[float]) -> float:
    return sum(numbers) / len(numbers)


def dense(query: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None) -> Tensor:
    """What a model's own attention does with a first prompt."""
    return torch.nn.functional.scaled_dot_product_attention(
        query, keys, values, mask, is_causal=mask is None, scale=SCALING, enable_gqa=True
    )


def take_prompt(layer: KVLayer, talk: Talk, place: slice) -> Tensor:
    """The outputs [T, Hq, D] of a prompt."""
    query = talk.queries[place].transpose(0, 1)[None]
    keys, values = talk.keys[None, :, place], talk.values[None, :, place]
    return layer.prompt(query, keys, values, None, None, talk.options, dense)[0].transpose(0, 1)


def take_step(layer: KVLayer, talk: Talk, position: int) -> Tensor:
    """The outputs [Hq, D] of a decode step."""
    place = slice(position, position + 1)
    layer.append(talk.keys[None, :, place], talk.values[None, :, place])
    return layer.attend(talk.queries[None, position, :, None], talk.options)[0, :, 0]


def walk(layer: KVLayer, talk: Talk, oracles: list[EvictionOracle]) -> Iterator[None]:
    """Take a layer and the oracles of its KV heads through a talk, and compare the outputs; yields after every pass."""
    keys, values = talk.keys.tolist(), talk.values.tolist()
    queries = talk.queries.unflatten(1, (NUM_KV_HEADS, -1)).tolist()
    for head, oracle in enumerate(oracles):
        oracle.watch(talk.options, head, len(queries[0][head]))
    position = 0
    for num_prompt, num_output in talk.turns:
        place = slice(position, position + num_prompt)
        got = take_prompt(layer, talk, place)
        position = place.stop
        of_heads = [
            oracle.prompt([groups[head] for groups in queries[place]], keys[head][place], values[head][place])
            for head, oracle in enumerate(oracles)
        ]
        expected = torch.tensor(of_heads).transpose(0, 1).flatten(1, 2)
        torch.testing.assert_close(got, expected, atol=TOLERANCE, rtol=TOLERANCE)
        yield
        for position in range(place.stop, place.stop + num_output):
            got = take_step(layer, talk, position)
            outs = [
                oracle.step(queries[position][head], keys[head][position], values[head][position])
                for head, oracle in enumerate(oracles)
            ]
            torch.testing.assert_close(got, torch.tensor(outs).flatten(0, 1), atol=TOLERANCE, rtol=TOLERANCE)
            yield
        position = place.stop + num_output


def same_tokens(layer: EvictionLayer, oracles: list[EvictionOracle]) -> None:
    """The slots hold the oracles' tokens, with the same keys, values, votes and scores."""
    kept = layer.kept
    scores = layer.parts.importance.scores(kept.stats, kept.positions, kept.votes)
    for head, oracle in enumerate(oracles):
        slots = {place: slot for slot, place in enumerate(kept.positions[head].tolist()) if place >= 0}
        tokens = oracle.tokens
        assert sorted(slots) == sorted(token.position for token in tokens)
        each = [slots[token.position] for token in tokens]
        for got, expected in (
            (kept.keys[head, each], [token.key for token in tokens]),
            (kept.values[head, each], [token.value for token in tokens]),
            (kept.votes[head, each].exp(), [token.votes for token in tokens]),
            (scores[head, each], [oracle.score(token) for token in tokens]),
        ):
            torch.testing.assert_close(got, torch.tensor(expected).float(), atol=TOLERANCE, rtol=TOLERANCE)


def agree_step_by_step(method: Method, talk: Talk, oracles: list[EvictionOracle]) -> EvictionLayer:
    """Go through a talk with a method and with its oracles: the same outputs, tokens and scores after every pass."""
    layer = method.layer(0)
    assert isinstance(layer, EvictionLayer)
    for _ in walk(layer, talk, oracles):
        same_tokens(layer, oracles)
        assert layer.attended == max(len(oracle.tokens) for oracle in oracles)
        layer.check_integrity()
    return layer
