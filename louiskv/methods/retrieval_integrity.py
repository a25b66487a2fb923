"""Whether what a retrieval layer holds agrees with itself."""

import torch

from louiskv.methods.parts import Parts
from louiskv.store.device import ResidentSet
from louiskv.store.pool import Pool
from louiskv.units.index import UnitIndex


def check_retrieval(parts: Parts, resident: ResidentSet, index: UnitIndex, pool: Pool, impl: str | None = None) -> None:
    """Every token is in one place, what is known of units is of their tokens, and slots hold what the pool does.

    Raises:
        AssertionError: Something disagrees.
    """
    check_places(resident, pool)
    check_table(index, pool)
    if index.summaries:
        check_summaries(parts, resident, index, pool, impl)
    check_slots(resident, pool)


def check_places(resident: ResidentSet, pool: Pool) -> None:
    """Every token is a sink, in the window, or in the pool."""
    positions, pool_lengths = pool.positions.cpu(), pool.lengths.cpu()
    length, start = resident.lengths.cpu(), resident.window_start.cpu()
    assert bool(((length - start) <= resident.window).all())
    for each in range(len(length)):
        sinks = torch.arange(min(int(length[each]), resident.num_sinks))
        window = torch.arange(int(start[each]), max(int(start[each]), int(length[each])))
        places = torch.cat([sinks, window, positions[each, : int(pool_lengths[each])].long()])
        assert places.sort().values.tolist() == list(range(int(length[each])))


def check_table(index: UnitIndex, pool: Pool) -> None:
    """Units lie side by side and fill the pool."""
    sizes, counts, pool_lengths = index.sizes.long().cpu(), index.counts.cpu(), pool.lengths.cpu()
    held = torch.arange(sizes.shape[1]) < counts[:, None]
    assert bool(((sizes > 0) == held).all())
    assert bool((index.offsets.cpu() == sizes.cumsum(1) - sizes)[held].all())
    assert bool((sizes.sum(1) == pool_lengths).all())
    assert torch.equal(index.num_tokens.cpu(), pool_lengths)


def check_summaries(parts: Parts, resident: ResidentSet, index: UnitIndex, pool: Pool, impl: str | None = None) -> None:
    """Summaries of units, of bundles of them and of tokens are what the pool's tokens give."""
    counts, pool_lengths = index.counts.cpu(), pool.lengths.cpu()
    # Where, and by what, they were built: a sum in another order may round to another code.
    rows = pool.decoded().to(resident.rows.device)
    keys, values = rows[..., : resident.key_dim], rows[..., resident.key_dim :]
    built, details = parts.summary.build(keys, values, index.sizes, impl)
    for part, expected, stride in zip(index.summaries, built, index.strides, strict=True):
        used = torch.arange(part.shape[1]) < (counts // stride)[:, None]
        torch.testing.assert_close(part.cpu()[used], expected.cpu()[used])
    if index.bundles is not None:
        for part, expected in zip(index.bundled, index.bundled_anew(impl), strict=True):
            torch.testing.assert_close(part, expected)
    if details is not None:
        assert index.details is not None
        longest = int(pool_lengths.max())
        used = torch.arange(longest) < pool_lengths[:, None]
        kept, expected = (each[:, :longest].cpu()[used] for each in (index.details, details))
        assert torch.equal(kept, expected)


def check_slots(resident: ResidentSet, pool: Pool) -> None:
    """Retrieved slots hold each token once, as the pool has it."""
    row, slot = (resident.slot_place >= 0).nonzero(as_tuple=True)
    place = resident.slot_place[row, slot].long()
    assert bool((place < pool.lengths[row]).all())
    assert torch.stack([row, place]).unique(dim=1).shape[1] == len(row)
    if not resident.in_place:
        expected = pool.coding.decode(pool.take(row, place), row).cpu()
        torch.testing.assert_close(resident.retrieved[row, slot].cpu(), expected, rtol=0, atol=0)
