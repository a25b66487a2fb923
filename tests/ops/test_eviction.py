"""Victims and mergers against loops."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from louiskv.errors import ImplementationError
from louiskv.ops import eviction as ops
from louiskv.ops.eviction import choose_victims, merge_similar

Entry = tuple[int, float]


def victims(entries: list[Entry], excess: int, page_size: int) -> set[int]:
    """Positions that go, from (position, score) of each token: the least and then the oldest, and their pages."""
    ranked = sorted((score, position) for position, score in entries if score < math.inf)
    pages = {position // page_size for _, position in ranked[:excess]}
    return {position for _, position in ranked if position // page_size in pages}


@settings(deadline=None, max_examples=80, derandomize=True)
@given(
    rows=st.lists(
        st.lists(
            # Few different scores, so that many are equal.
            st.tuples(st.integers(0, 40), st.sampled_from([-2.0, 0.0, 0.5, 3.0, math.inf])),
            min_size=1,
            max_size=24,
            unique_by=lambda entry: entry[0],
        ),
        min_size=1,
        max_size=4,
    ),
    excess=st.integers(0, 24),
    page_size=st.sampled_from([1, 2, 5]),
    seed=st.integers(0, 99),
)
def test_the_least_and_the_oldest_go_with_their_pages(
    rows: list[list[Entry]], excess: int, page_size: int, seed: int
) -> None:
    size = max(map(len, rows)) + 2
    scores, positions = torch.full((len(rows), size), torch.inf), torch.full((len(rows), size), -1)
    order = torch.randperm(size, generator=torch.Generator().manual_seed(seed)).tolist()
    counts = []
    for row, entries in enumerate(rows):
        for slot, (position, score) in zip(order, entries, strict=False):
            positions[row, slot], scores[row, slot] = position, score
        counts.append(min(excess, sum(score < math.inf for _, score in entries)))
    lost = choose_victims(scores, positions, torch.tensor(counts), page_size=page_size)
    assert lost.shape == scores.shape
    for row, entries in enumerate(rows):
        got = positions[row, lost[row]].tolist()
        assert len(got) == len(set(got))
        assert set(got) == victims(entries, counts[row], page_size)


def test_what_may_not_go_stays_though_its_page_goes() -> None:
    scores = torch.tensor([[torch.inf, 1.0, 1.0, torch.inf, 2.0, torch.inf]])
    positions = torch.tensor([[4, 5, 6, 7, 8, -1]])
    lost = choose_victims(scores, positions, torch.tensor([1]), page_size=4)
    assert lost.tolist() == [[False, True, True, False, False, False]]


Row = list[float]


def cosine(left: Row, right: Row) -> float:
    product = sum(a * b for a, b in zip(left, right, strict=True))
    return product / math.sqrt(sum(a * a for a in left) * sum(b * b for b in right))


def merged(
    keys: list[Row], values: list[Row], votes: Row, log_scores: Row, lost: list[bool], threshold: float
) -> tuple[list[Row], list[Row], Row]:
    """One row of tokens; a token without votes is none."""
    parts: dict[int, list[int]] = {place: [place] for place in range(len(keys)) if votes[place] and not lost[place]}
    for place in range(len(keys)):
        if lost[place] and parts:
            partner = max(parts, key=lambda kept: cosine(keys[place], keys[kept]))
            if cosine(keys[place], keys[partner]) >= threshold:
                parts[partner].append(place)
    out_keys, out_values = [list(row) for row in keys], [list(row) for row in values]
    out_votes = [0.0 if gone else number for number, gone in zip(votes, lost, strict=True)]
    for place, group in parts.items():
        if len(group) == 1:
            continue
        weights = [votes[each] * math.exp(log_scores[each]) for each in group]
        total, number = sum(weights), sum(votes[each] for each in group)
        logit = sum(w * log_scores[each] for w, each in zip(weights, group, strict=True)) / total
        factor = math.log(total / number) / logit if abs(logit) >= 0.5 else 1.0
        factor = factor if 0.25 <= factor <= 4 else 1.0
        for channel in range(len(keys[0])):
            mean = sum(w * keys[each][channel] for w, each in zip(weights, group, strict=True)) / total
            out_keys[place][channel] = factor * mean
        for channel in range(len(values[0])):
            mean = sum(w * values[each][channel] for w, each in zip(weights, group, strict=True)) / total
            out_values[place][channel] = mean
        out_votes[place] = number
    return out_keys, out_values, out_votes


@settings(deadline=None, max_examples=60, derandomize=True)
@given(
    num_tokens=st.integers(1, 24),
    share_lost=st.sampled_from([0.0, 0.3, 0.7]),
    share_empty=st.sampled_from([0.0, 0.3]),
    threshold=st.sampled_from([-1.0, 0.2, 0.8]),
    spread=st.sampled_from([0.5, 3.0, 20.0]),
    seed=st.integers(0, 999),
)
def test_merge_similar(
    num_tokens: int, share_lost: float, share_empty: float, threshold: float, spread: float, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    keys, values = (torch.randn(3, num_tokens, dim, generator=generator) for dim in (4, 5))
    log_scores = spread * torch.randn(3, num_tokens, generator=generator)
    numbers = torch.randint(1, 4, (3, num_tokens), generator=generator)
    numbers[torch.rand(3, num_tokens, generator=generator) < share_empty] = 0
    lost = (torch.rand(3, num_tokens, generator=generator) < share_lost) & (numbers > 0)
    got = merge_similar(keys, values, numbers.float().log(), log_scores, lost, threshold=threshold)
    for row in range(3):
        expected = merged(
            keys[row].tolist(),
            values[row].tolist(),
            numbers[row].tolist(),
            log_scores[row].tolist(),
            lost[row].tolist(),
            threshold,
        )
        for each, written_out in zip((got[0], got[1], got[2].exp()), expected, strict=True):
            torch.testing.assert_close(each[row], torch.tensor(written_out).float(), atol=1e-4, rtol=1e-4)


def pair(log_scores: Row, votes: Row) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, Row]:
    """The second of two tokens goes into the first; also what share each should have."""
    keys, values = torch.tensor([[[1.0, 0.0], [1.0, 0.1]]]), torch.tensor([[[1.0, 2.0], [3.0, -2.0]]])
    lost = torch.tensor([[False, True]])
    out = merge_similar(keys, values, torch.tensor([votes]).log(), torch.tensor([log_scores]), lost, threshold=0.8)
    weights = [number * math.exp(each) for number, each in zip(votes, log_scores, strict=True)]
    return *out, [weight / sum(weights) for weight in weights]


@pytest.mark.parametrize(
    ("log_scores", "votes"),
    [
        ([0.2, -0.3], [1.0, 1.0]),  # the denominator is near 0
        ([0.0, 0.0], [1.0, 1.0]),  # it is 0
        ([-3.0, 0.6], [1.0, 1.0]),  # the factor would be negative
        ([-4.0, 0.8], [1.0, 1.0]),  # it would be 0.15
        ([-0.6, -20.0], [1.0, 10.0]),  # it would be 5
    ],
)
def test_where_the_factor_is_not_sound_the_mean_key_stands(log_scores: Row, votes: Row) -> None:
    keys, values, together, (first, second) = pair(log_scores, votes)
    torch.testing.assert_close(keys[0, 0], torch.tensor([1.0, 0.1 * second]))
    torch.testing.assert_close(values[0, 0], torch.tensor([first + 3 * second, 2 * first - 2 * second]))
    torch.testing.assert_close(together, torch.tensor([[math.log(sum(votes)), -math.inf]]))


def test_where_it_is_the_logit_of_the_merged_key_is_that_of_the_mean_score() -> None:
    keys, _, _, (first, second) = pair([2.0, 1.0], [1.0, 1.0])
    factor = math.log((math.e**2 + math.e) / 2) / (2 * first + second)
    torch.testing.assert_close(keys[0, 0], factor * torch.tensor([1.0, 0.1 * second]))


@pytest.mark.parametrize("seed", range(5))
def test_attention_with_the_query_of_the_scores_stays_what_it_was(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    keys, values = (torch.randn(1, 12, 6, generator=generator) for _ in range(2))
    keys[..., 0] = 3
    query = torch.randn(6, generator=generator) / 3
    query[0] = 1
    votes = torch.randint(1, 5, (1, 12), generator=generator).float().log()
    lost = torch.arange(12)[None] % 3 == 1

    def attention(keys: torch.Tensor, values: torch.Tensor, votes: torch.Tensor) -> torch.Tensor:
        return torch.softmax(keys @ query + votes, 1) @ values[0]

    after = merge_similar(keys, values, votes, keys @ query, lost, threshold=-1)
    torch.testing.assert_close(attention(*after), attention(keys, values, votes))


def test_partners_are_looked_for_in_parts_without_changing_the_result(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(0)
    keys, values = (torch.randn(3, 20, 4, generator=generator) for _ in range(2))
    log_scores = torch.randn(3, 20, generator=generator)
    lost = torch.rand(3, 20, generator=generator) < 0.6
    whole = merge_similar(keys, values, torch.zeros(3, 20), log_scores, lost, threshold=0.3)
    monkeypatch.setattr(ops, "MAX_COSINES", 3 * 20 * 2)
    in_parts = merge_similar(keys, values, torch.zeros(3, 20), log_scores, lost, threshold=0.3)
    assert all(torch.equal(got, expected) for got, expected in zip(in_parts, whole, strict=True))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_keys_and_values_keep_their_dtype(dtype: torch.dtype) -> None:
    keys, values = torch.randn(2, 6, 4).to(dtype), torch.randn(2, 6, 4).to(dtype)
    lost = torch.arange(6).expand(2, 6) < 2
    out = merge_similar(keys, values, torch.zeros(2, 6), torch.ones(2, 6), lost, threshold=-1)
    assert [each.dtype for each in out] == [dtype, dtype, torch.float32]
    assert out[0].isfinite().all() and out[1].isfinite().all()


def test_an_implementation_that_is_none_is_refused() -> None:
    nothing = torch.zeros(1, 2)
    with pytest.raises(ImplementationError, match="choose_victims.*magic"):
        choose_victims(nothing, nothing.long(), torch.tensor([0]), impl="magic")
    with pytest.raises(ImplementationError, match="merge_similar.*magic"):
        merge_similar(nothing[..., None], nothing[..., None], nothing, nothing, nothing > 0, threshold=0, impl="magic")
