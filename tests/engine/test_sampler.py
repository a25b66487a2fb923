"""Tokens chosen from logits, against sorting and summing one row at a time."""

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from louiskv.engine import Sampling, sampler
from louiskv.engine.sampler import Draws, Limits, Sampler, sample

CPU = torch.device("cpu")


def slowly(logits: list[float], limits: Sampling, uniform: float) -> set[int]:
    """The tokens that inverting the distribution may give, within rounding."""
    scaled = [logit / limits.temperature for logit in logits]
    most = max(scaled)
    order = sorted(range(len(logits)), key=lambda token: -scaled[token])
    shares = [math.exp(scaled[token] - most) for token in order]
    if limits.top_k:
        shares = shares[: limits.top_k]
    total = sum(shares)
    shares = [share / total for share in shares]
    kept, before = list[float](), 0.0
    for share in shares:
        if kept and (before >= limits.top_p or share < limits.min_p * shares[0]):
            break
        kept.append(share)
        before += share
    found: set[int] = set()
    for wanted in (uniform - 1e-4, uniform, uniform + 1e-4):
        summed = 0.0
        for place, share in enumerate(kept):
            summed += share
            if summed > wanted * sum(kept) or place == len(kept) - 1:
                found.add(order[place])
                break
    return found


limited = st.builds(
    Sampling,
    temperature=st.sampled_from([0.3, 1.0, 2.5]),
    top_p=st.sampled_from([0.1, 0.5, 0.9, 1.0]),
    top_k=st.sampled_from([0, 1, 3, 12, 40]),
    min_p=st.sampled_from([0.0, 0.02, 0.5]),
)


@settings(deadline=None, max_examples=60)
@given(rows=st.lists(limited, min_size=1, max_size=5), few=st.sampled_from([2, 8, 40]), seed=st.integers(0, 99))
def test_a_batch_of_settings_chooses_as_each_alone_does(rows: list[Sampling], few: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(len(rows), 40, generator=generator) * 2
    uniform = torch.rand(len(rows), generator=generator)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sampler, "FEW", few)
        got = sample(logits, Limits.of(rows, CPU), uniform).tolist()
        alone = [
            int(sample(logits[row : row + 1], Limits.of([each], CPU), uniform[row : row + 1]))
            for row, each in enumerate(rows)
        ]
    assert got == alone
    for row, each in enumerate(rows):
        assert got[row] in slowly(logits[row].tolist(), each, float(uniform[row]))


def test_what_is_drawn_has_the_distribution_asked_for() -> None:
    logits = torch.tensor([[2.0, 1.0, 0.0, -1.0]]).expand(20000, 4)
    uniform = torch.rand(20000, generator=torch.Generator().manual_seed(0))
    tokens = sample(logits, Limits.of([Sampling()] * 20000, CPU), uniform)
    shares = torch.bincount(tokens, minlength=4) / 20000
    torch.testing.assert_close(shares, logits[0].softmax(-1), atol=0.01, rtol=0)


def test_draws_are_those_of_the_seed() -> None:
    first, second, other = Draws(3), Draws(3), Draws(4)
    numbers = [first.next() for _ in range(600)]
    assert numbers == [second.next() for _ in range(600)]
    assert numbers != [other.next() for _ in range(600)]
    assert len(set(numbers)) > 590
    assert Draws(-1).next() == Draws(-1).next()
    assert Draws(None).next() != Draws(None).next()


def chosen(settings: Sampling, logits: torch.Tensor, prompt: list[int], steps: int) -> list[int]:
    one = Sampler(3, logits.shape[1], CPU)
    one.put(1, settings, torch.tensor(prompt))
    return [one.choose(logits, [1])[0][0] for _ in range(steps)]


def greedy(**more: Any) -> Sampling:
    return Sampling(temperature=0, **more)


def test_penalties_and_biases() -> None:
    logits = torch.tensor([[5.0, 4.0, 3.0, -1.0]])
    assert chosen(greedy(), logits, [0], 3) == [0, 0, 0]
    assert chosen(greedy(presence_penalty=1.5), logits, [0], 4) == [0, 1, 0, 0], "once, and not for the prompt"
    assert chosen(greedy(frequency_penalty=0.75), logits, [0], 4) == [0, 0, 1, 0]
    assert chosen(greedy(repetition_penalty=2.0), logits, [0], 3) == [1, 2, 0], "for the prompt as well"
    assert chosen(greedy(logit_bias={3: 7.0, 0: -9.0}), logits, [0], 2) == [3, 3]
    # Below 0 a repetition makes it less still.
    assert chosen(greedy(repetition_penalty=2.0), torch.tensor([[-1.0, -1.5]]), [0], 1) == [1]


def test_each_row_has_its_own_settings_and_a_new_one_begins_anew() -> None:
    logits = torch.tensor([[5.0, 4.0, 3.0]])
    both = Sampler(2, 3, CPU)
    both.put(0, greedy(repetition_penalty=2.0, frequency_penalty=0.5, logit_bias={2: 1.5}), torch.tensor([0]))
    both.put(1, greedy(), torch.tensor([0]))
    assert both.choose(logits.expand(2, -1), [0, 1])[0] == [2, 0]
    both.clear(0)
    both.put(0, greedy(repetition_penalty=1.1), torch.tensor([2]))
    assert both.choose(logits.expand(2, -1), [0, 1])[0] == [0, 0]
    both.respread([1, 0], 4)
    assert both.choose(logits.expand(2, -1), [1, 0])[0] == [0, 0]
    assert len(both.rows) == 4


def test_logarithms_are_of_what_the_model_said() -> None:
    logits = torch.tensor([[1.0, 3.0, 2.0], [0.0, 0.0, 5.0]])
    one = Sampler(2, 3, CPU)
    one.put(0, greedy(logprobs=2, logit_bias={0: 50.0}), torch.tensor([1]))
    one.put(1, greedy(), torch.tensor([1]))
    tokens, said = one.choose(logits, [0, 1])
    assert tokens == [0, 2]
    assert said[1] is None
    assert said[0] is not None
    expected = logits[0].log_softmax(-1).tolist()
    assert said[0].logprob == pytest.approx(expected[0])
    assert [token for token, _ in said[0].best] == [1, 2]
    assert [value for _, value in said[0].best] == pytest.approx([expected[1], expected[2]])


def test_a_temperature_near_0_takes_the_most_probable_token_and_a_large_top_k_takes_all() -> None:
    logits = torch.tensor([[1.0, 3.0, 2.9, -5.0]])
    for temperature in (1e-320, 1e-45, 1e-38, 1e-6):
        assert chosen(Sampling(temperature=temperature, seed=1), logits, [0], 20) == [1] * 20
    assert chosen(Sampling(top_k=2**90, seed=1), logits, [0], 20) == chosen(Sampling(seed=1), logits, [0], 20)


def test_more_logarithms_than_tokens_are_those_of_all_tokens() -> None:
    one = Sampler(1, 3, CPU)
    one.put(0, greedy(logprobs=20), torch.tensor([1]))
    (said,) = one.choose(torch.tensor([[1.0, 3.0, 2.0]]), [0])[1]
    assert said is not None
    assert [token for token, _ in said.best] == [1, 2, 0]
