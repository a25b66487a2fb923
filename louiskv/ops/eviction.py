"""Which tokens to drop, and how a dropped token lives on in one that is kept."""

import torch
from torch import Tensor

from louiskv.ops.dispatch import choose, implementations
from louiskv.ops.ragged import dense_ranks, left_aligned, take_rows

# Cosines held at once while the tokens to drop look for partners (float32, so 256 MiB).
MAX_COSINES = 64 * 1024 * 1024
# A merged key is the mean of its parts times a factor. Where that would leave this range, or is a quotient of numbers
# so near 0 that rounding decides it, the mean stands as it is.
FACTORS = (0.25, 4.0)
LEAST_LOGIT = 0.5


def choose_victims(
    scores: Tensor, positions: Tensor, excess: Tensor, *, page_size: int = 1, impl: str | None = None
) -> Tensor:
    """Choose the tokens that matter least.

    Args:
        scores: [N, C]; inf where a token may not go or there is none.
        positions: [N, C] positions of the tokens, -1 where there is none.
        excess: [N] how many must go, at most as many as have a finite score.
        page_size: Tokens go by whole pages, `position // page_size`, but for those that may not go.
        impl: Implementation; None takes the best that can run.

    Returns:
        [N, C] True for a token to drop: those of least score, among equals the oldest, and the rest of their pages.

    Raises:
        ImplementationError: `impl` cannot run on this device.
    """
    function = choose("choose_victims", CHOOSE_VICTIMS, impl, scores)
    lost: Tensor = function(scores, positions, excess, page_size)
    return lost


def _choose_victims(scores: Tensor, positions: Tensor, excess: Tensor, page_size: int) -> Tensor:
    oldest_first = positions.argsort(dim=1)
    least_first = scores.gather(1, oldest_first).argsort(dim=1, stable=True)
    goes = torch.arange(scores.shape[1], device=scores.device) < excess[:, None]
    lost = torch.zeros_like(goes).scatter(1, oldest_first.gather(1, least_first), goes)
    if page_size == 1:
        return lost
    page = dense_ranks(positions.clamp(min=0) // page_size)
    hit = torch.zeros_like(lost, dtype=torch.int32).scatter_add_(1, page, lost.int())
    return (hit.gather(1, page) > 0) & (scores < torch.inf)


def merge_similar(
    keys: Tensor,
    values: Tensor,
    votes: Tensor,
    log_scores: Tensor,
    lost: Tensor,
    *,
    threshold: float,
    most: int | None = None,
    impl: str | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Merge tokens that are dropped into the kept tokens whose keys are most alike (KeepKV, arXiv 2504.09936).

    With `w = p s` for the votes p and the scores `s = exp(scaling q.k)`, the tokens X that become one have

        v = sum w v / sum w,   p' = sum p,   k = (sum w k / sum w) * ln(sum w / sum p) / (sum w ln s / sum w),

    and attention with the query of those scores is what it was before. Where the factor of the mean key is out of
    `FACTORS`, or its denominator within `LEAST_LOGIT` of 0, the mean key stands (section 4.2 there; the guard is ours).

    Args:
        keys: [N, C, D].
        values: [N, C, Dv].
        votes: [N, C] ln p, -inf where there is no token.
        log_scores: [N, C] ln s, finite.
        lost: [N, C] True for tokens to drop.
        threshold: A token whose best cosine is less is dropped for good.
        most: Lost tokens of a row at the most; None if that is not known.
        impl: Implementation; None takes the best that can run.

    Returns:
        Keys, values and votes with every lost token merged or gone; its votes are -inf then.

    Raises:
        ImplementationError: `impl` cannot run on this device.
    """
    function = choose("merge_similar", MERGE_SIMILAR, impl, keys)
    keys, values, votes = function(keys, values, votes, log_scores, lost, threshold, most)
    return keys, values, votes


def _merge_similar(
    keys: Tensor,
    values: Tensor,
    votes: Tensor,
    log_scores: Tensor,
    lost: Tensor,
    threshold: float,
    most: int | None,
) -> tuple[Tensor, Tensor, Tensor]:
    goes_to, takes_part = _targets(keys, (votes > -torch.inf) & ~lost, lost, threshold, most)
    num_tokens = lost.shape[1]

    def summed(numbers: Tensor) -> Tensor:
        """Sums over the tokens that become one, [N, C, K] at the place of the one that is kept."""
        total = numbers.new_zeros(len(lost), num_tokens + 1, numbers.shape[2])
        return total.scatter_add_(1, goes_to[..., None].expand_as(numbers), numbers)[:, :-1]

    # Weights relative to the heaviest of those that become one, so that none overflows.
    weights = torch.where(takes_part, votes + log_scores, -torch.inf)
    none = torch.full_like(votes[:, :1], -torch.inf).expand(-1, num_tokens + 1)
    heaviest = none.scatter_reduce(1, goes_to, weights, "amax")
    relative = torch.exp(weights - heaviest.gather(1, goes_to).clamp(min=torch.finfo(weights.dtype).min))
    counts = torch.where(takes_part, votes.exp(), 0)
    sums = summed(torch.stack([relative, relative * log_scores, counts], -1))
    total, mean_score, all_votes = sums[..., 0], sums[..., 1] / sums[..., 0], sums[..., 2].log()
    factor = (total.log() + heaviest[:, :-1] - all_votes) / mean_score
    sound = (factor >= FACTORS[0]) & (factor <= FACTORS[1]) & (mean_score.abs() >= LEAST_LOGIT)
    factor = torch.where(sound, factor, 1)
    mean_key = summed(relative[..., None] * keys.float()) / total[..., None]
    mean_value = summed(relative[..., None] * values.float()) / total[..., None]
    into = takes_part & ~lost
    return (
        torch.where(into[..., None], (mean_key * factor[..., None]).to(keys.dtype), keys),
        torch.where(into[..., None], mean_value.to(values.dtype), values),
        torch.where(into, all_votes, votes).masked_fill(lost, -torch.inf),
    )


def _targets(keys: Tensor, kept: Tensor, lost: Tensor, threshold: float, most: int | None) -> tuple[Tensor, Tensor]:
    """Where each token goes: a kept one stays, a lost one to its partner, or nowhere (C); and who is in a merger."""
    num_tokens = lost.shape[1]
    goes_to = torch.arange(num_tokens, device=lost.device).expand_as(lost).masked_fill(lost, num_tokens)
    order, counts = left_aligned(lost)
    each = order[:, : int(counts.max()) if most is None else most]
    direction = torch.nn.functional.normalize(keys.float(), dim=-1)
    step = max(1, MAX_COSINES // (len(keys) * num_tokens))
    for first in range(0, each.shape[1], step):
        place = each[:, first : first + step]
        cosine = torch.bmm(take_rows(direction, place), direction.transpose(1, 2))
        best, partner = cosine.masked_fill(~kept[:, None], -torch.inf).max(-1)
        merges = lost.gather(1, place) & (best >= threshold)
        goes_to = goes_to.scatter(1, place, torch.where(merges, partner, goes_to.gather(1, place)))
    moved = lost & (goes_to < num_tokens)
    reached = lost.new_zeros(len(lost), num_tokens + 1, dtype=torch.int32).scatter_add_(1, goes_to, moved.int())
    return goes_to, moved | (reached[:, :-1] > 0)


CHOOSE_VICTIMS = implementations("eviction", _choose_victims, ())
MERGE_SIMILAR = implementations("eviction", _merge_similar, ())
