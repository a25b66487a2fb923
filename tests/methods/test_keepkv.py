"""KeepKV against a slow oracle of its paper, the property its merging has, and its settings."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from louiskv import KeepKV, SettingsError
from louiskv.importance import MovingAverage, Observation
from louiskv.methods.eviction_layer import EvictionLayer
from tests.methods.eviction_oracle import (
    EvictionOracle,
    Talk,
    Token,
    agree_step_by_step,
    mean,
    random_talk,
    take_prompt,
    take_step,
)
from tests.methods.oracle import NUM_KV_HEADS, SCALING, dot


class KeepKVOracle(EvictionOracle):
    """The tokens of most weight `p s`; one that goes becomes part of the one most like it."""

    watched = 32

    def __init__(self, method: KeepKV) -> None:
        super().__init__(method.budget, method.window)
        self.sink, self.threshold, self.decay = method.sink, method.threshold, method.decay
        self.merged = self.guarded = 0
        self.lost = 0.0

    def average(self, token: Token) -> float:
        """Of `s` over the queries that saw the token, the newest one counting most."""
        sizes = [math.exp(mean(logits)) for logits in token.logits]
        shares = [(1 - self.decay) * self.decay**age for age in reversed(range(len(sizes)))]
        return dot(shares, sizes) / (1 - self.decay ** len(sizes))

    def score(self, token: Token) -> float:
        return math.log(token.votes * self.average(token))

    def drop(self, lost: list[Token]) -> None:
        """Each goes into the kept token whose key is most like its own, or nowhere."""
        super().drop(lost)
        parts = {token: [token] for token in self.tokens}
        for token in lost:
            partner = max(self.tokens, key=lambda kept: cosine(token, kept))
            if cosine(token, partner) >= self.threshold:
                parts[partner].append(token)
                self.merged += 1
            else:
                self.lost += token.votes
        for token, group in parts.items():
            if len(group) > 1:
                self.merge(token, group)

    def merge(self, into: Token, group: list[Token]) -> None:
        """Section 4.2 of the paper, for any number of tokens."""
        sizes = [self.average(token) for token in group]
        weights = [token.votes * size for token, size in zip(group, sizes, strict=True)]
        shares = [weight / sum(weights) for weight in weights]
        votes = sum(token.votes for token in group)
        logit = dot(shares, [math.log(size) for size in sizes])
        factor = math.log(sum(weights) / votes) / logit
        # Where the logit decides nothing, or the factor is out of all proportion, the mean stands.
        if abs(logit) < 0.5 or not 0.25 <= factor <= 4:
            self.guarded += 1
            factor = 1.0
        key = [factor * dot(shares, list(channel)) for channel in zip(*(token.key for token in group), strict=True)]
        into.value = [dot(shares, list(channel)) for channel in zip(*(token.value for token in group), strict=True)]
        into.key, into.votes = key, votes


def cosine(left: Token, right: Token) -> float:
    return dot(left.key, right.key) / math.sqrt(dot(left.key, left.key) * dot(right.key, right.key))


@settings(deadline=None, max_examples=24, derandomize=True)
@given(
    length=st.integers(1, 60),
    steps=st.integers(24, 60),
    sink=st.integers(0, 4),
    window=st.integers(1, 8),
    room=st.integers(1, 24),
    threshold=st.sampled_from([-1.0, 0.3, 0.8]),
    decay=st.sampled_from([0.01, 0.7, 0.9]),
    second=st.integers(1, 20),
    alike=st.booleans(),
    group_size=st.sampled_from([1, 2, 3]),
    plain=st.booleans(),
    seed=st.integers(0, 999),
)
def test_agrees_with_the_oracle_step_by_step(
    length: int,
    steps: int,
    sink: int,
    window: int,
    room: int,
    threshold: float,
    decay: float,
    second: int,
    alike: bool,
    group_size: int,
    plain: bool,
    seed: int,
) -> None:
    method = KeepKV(budget=sink + window + room, sink=sink, window=window, threshold=threshold, decay=decay)
    talk = random_talk([(length, steps), (second, 5)], group_size, seed, dim=4, plain=plain, alike=alike)
    agree_step_by_step(method, talk, [KeepKVOracle(method) for _ in range(NUM_KV_HEADS)])


def test_tokens_are_merged_and_lost_and_some_keys_guarded() -> None:
    method = KeepKV(budget=16, sink=2, window=4, threshold=0.7)
    oracles = [KeepKVOracle(method) for _ in range(NUM_KV_HEADS)]
    layer = agree_step_by_step(method, random_talk([(30, 60)], 2, seed=0, dim=4), list(oracles))
    for oracle, votes in zip(oracles, layer.kept.votes.exp().sum(1).tolist(), strict=True):
        assert oracle.merged > 10 and oracle.lost > 10 and oracle.guarded > 3
        assert votes == pytest.approx(90 - oracle.lost, abs=1e-3)


def harmless_talk(seed: int) -> Talk:
    """One query head a KV head, and positive keys and queries: logits are so far from 0 that no guard is needed."""
    talk = random_talk([(30, 30)], 1, seed)
    for rows in (talk.keys, talk.queries):
        rows.copy_(rows.sigmoid() + 0.5)
    return talk


@pytest.mark.parametrize("seed", range(4))
def test_merging_changes_nothing_for_the_query_whose_scores_it_went_by(seed: int) -> None:
    talk = harmless_talk(seed)
    # With next to nothing left of earlier queries, s is that of the newest one.
    layer = KeepKV(budget=20, sink=2, window=4, threshold=-1, decay=1e-9).layer(0)
    assert isinstance(layer, EvictionLayer)

    def attention_of_past(position: int) -> torch.Tensor:
        query = talk.queries[position].unflatten(0, (NUM_KV_HEADS, 1, 1))
        return layer.attend_past(query, scaling=SCALING, softcap=None)[0][:, 0, 0]

    out = take_prompt(layer, talk, slice(0, 30))[-1]
    assert layer.attended == 20
    torch.testing.assert_close(attention_of_past(29), out)
    for position in range(30, 59):
        out = take_step(layer, talk, position)
        assert layer.attended == 20
        # The next token pushes one into another, and is forgotten itself.
        layer.append(talk.keys[None, :, position + 1, None], talk.values[None, :, position + 1, None])
        layer.crop(torch.tensor([1]))
        assert layer.attended == 19
        torch.testing.assert_close(layer.kept.votes.exp().sum(1), torch.full((NUM_KV_HEADS,), position + 1.0))
        torch.testing.assert_close(attention_of_past(position), out)


def test_a_key_whose_logits_are_near_zero_becomes_the_mean() -> None:
    talk = random_talk([(30, 40)], 1, seed=0)
    talk.queries.mul_(0.05)
    method = KeepKV(budget=16, sink=2, window=4, threshold=-1)
    oracles = [KeepKVOracle(method) for _ in range(NUM_KV_HEADS)]
    layer = agree_step_by_step(method, talk, list(oracles))
    assert all(oracle.merged > oracle.guarded > 40 for oracle in oracles)
    # A mean is no longer than its parts; a factor would have been the quotient of two numbers near 0.
    assert float(layer.kept.keys.norm(dim=-1).max()) <= float(talk.keys.norm(dim=-1).max())


def test_what_nothing_is_like_is_lost() -> None:
    talk = harmless_talk(0)
    layer = KeepKV(budget=20, sink=2, window=4, threshold=1).layer(0)
    assert isinstance(layer, EvictionLayer)
    take_prompt(layer, talk, slice(0, 30))
    assert layer.kept.votes.eq(0).all()
    for head, held in enumerate(layer.kept.positions.tolist()):
        assert torch.equal(layer.kept.keys[head], talk.keys[head, held])


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"budget": 0}, "budget=0 .* at least 1"),
        ({"budget": "many"}, "budget='many' .* whole number"),
        ({"budget": 36}, "budget=36 leaves nothing that may be dropped: with sink=4 .* newest 32 .* at least 37"),
        ({"sink": -1}, "sink=-1 .* at least 0"),
        ({"window": 0}, "window=0 .* at least 1"),
        ({"window": 2.5}, "window=2.5 .* whole number"),
        ({"threshold": 1.1}, "threshold=1.1 .* from -1 to 1"),
        ({"threshold": "high"}, "threshold='high' .* from -1 to 1"),
        ({"decay": 0}, "decay=0 .* between 0 and 1"),
        ({"decay": 1.0}, "decay=1.0 .* between 0 and 1"),
        ({"decay": "slow"}, "decay='slow' .* between 0 and 1"),
        ({"dense_layers": -1}, "dense_layers=-1 .* at least 0"),
    ],
)
def test_wrong_settings_say_what_is_allowed(wrong: dict[str, object], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        KeepKV(**wrong)  # type: ignore[arg-type]


def test_a_token_of_no_weight_at_all_counts_as_seen() -> None:
    # Weights of float32 end some 100 nats below the log-sum-exp.
    logits = torch.tensor([50.0, -70.0, -20.0])
    lse = logits.logsumexp(0).reshape(1, 1, 1)
    weights = (logits - lse).exp().reshape(1, 1, 1, 3)
    positions = torch.arange(3)[None]
    seen = Observation(weights, lse, torch.zeros(1, 3), positions, torch.tensor([[3]]))
    importance = MovingAverage()
    stats = importance.observe(torch.zeros(1, 3, 2), seen)
    assert importance.scores(stats, positions, torch.zeros(1, 3))[0].argsort().tolist() == [1, 2, 0]
