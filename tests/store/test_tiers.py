"""Host pool, resident set, and the copies between them with their counters."""

from pathlib import Path

import pytest
import torch

from louiskv.errors import HostMemoryError
from louiskv.store import pool as pool_module
from louiskv.store.coding import Exact, FewBits
from louiskv.store.device import ResidentSet
from louiskv.store.pool import Pool, available_host_memory, capacity_for
from louiskv.store.transfer import Transfer

CPU = torch.device("cpu")


def filled_pool(counts: list[int]) -> tuple[Pool, torch.Tensor]:
    pool = Pool(len(counts), Exact(6, torch.float32), CPU)
    rows = torch.randn(len(counts), max(counts), 6)
    positions = torch.arange(max(counts)).expand(len(counts), -1)
    pool.append(rows, positions, torch.tensor(counts))
    return pool, rows


def test_pool_appends_ragged_rows_and_grows() -> None:
    pool, rows = filled_pool([300, 200])
    begin = pool.append(rows[:, :100], torch.arange(300, 400).expand(2, -1), torch.tensor([100, 50]))
    assert begin.tolist() == [300, 200]
    assert pool.lengths.tolist() == [400, 250]
    assert torch.equal(
        pool.take(torch.tensor([0, 1]), torch.tensor([399, 200])), torch.stack([rows[0, 99], rows[1, 0]])
    )
    assert pool.token_size == 24


def test_pool_forgets_what_is_not_before_an_end() -> None:
    pool, rows = filled_pool([5, 3])
    kept = pool.keep_before(torch.tensor([2, 9]))
    assert kept[:, :5].tolist() == [[True, True, False, False, False], [True, True, True, False, False]]
    assert pool.lengths.tolist() == [2, 3]
    assert torch.equal(pool.rows[0, :2], rows[0, :2])


@pytest.mark.parametrize("tier", ["host", "device"])
@pytest.mark.parametrize("bits", [8, 4])
def test_a_pool_of_few_bits_gives_back_what_was_held(bits: int, tier: str) -> None:
    pool, transfer = Pool(2, FewBits(bits, 2, 4, 2, torch.float32, CPU), CPU, tier), Transfer(CPU)
    rows, positions = torch.randn(2, 9, 6) + 5, torch.arange(9).expand(2, -1)
    begin, held = transfer.offload(pool, rows, positions, torch.tensor([9, 7]))
    assert begin.tolist() == [0, 0]
    assert not torch.equal(held, rows)
    row, index = torch.tensor([0, 1, 1]), torch.tensor([8, 0, 6])
    assert torch.equal(transfer.gather(pool, row, index), held[row, index])
    chunks = [chunk for chunk, _ in transfer.read(pool, 4)]
    assert torch.equal(torch.cat(chunks, 1)[1, :7], held[1, :7])
    assert torch.equal(pool.decoded()[0, :9], held[0])
    moved = {"host": pool.coding.token_size, "device": 0}[tier]
    assert pool.token_size == {8: 6 + 8, 4: 3 + 8}[bits]
    assert (transfer.traffic.offloaded_bytes, transfer.traffic.fetched_bytes) == (16 * moved, (3 + 18) * moved)
    pool.select_rows(torch.tensor([1, 0]))
    assert torch.equal(transfer.gather(pool, 1 - row, index), held[row, index])


def test_tokens_of_few_bits_stay_as_they_are_when_others_go() -> None:
    coding = FewBits(4, 2, 4, 2, torch.float32, CPU)
    pool, transfer, rows = Pool(2, coding, CPU), Transfer(CPU), torch.randn(2, 9, 6)
    order = torch.randperm(9, generator=torch.Generator().manual_seed(0))
    _, held = transfer.offload(pool, rows, order.expand(2, -1), torch.tensor([9, 9]))
    pool.keep_before(torch.tensor([4, 0]))
    assert torch.equal(pool.decoded()[0, :4], held[0, order < 4])
    assert coding.learnt.tolist() == [True, False], "what is empty learns anew"


def test_room_beyond_what_is_needed() -> None:
    assert capacity_for(10) == 266
    assert capacity_for(16000) == 17000


def test_a_pool_that_cannot_grow_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object) -> torch.Tensor:
        raise RuntimeError("not enough memory")

    monkeypatch.setattr(pool_module, "grown", refuse)
    pool = Pool(1, Exact(6, torch.float32), CPU)
    with pytest.raises(HostMemoryError, match=r"cannot grow to 266 tokens .*louiskv plan"):
        pool.append(torch.zeros(1, 10, 6), torch.zeros(1, 10), torch.tensor([10]))


def append(resident: ResidentSet, value: float) -> None:
    resident.append(torch.full((1, 4), value), torch.full((1, 2), value))


def test_sinks_and_window_have_their_slots() -> None:
    resident = ResidentSet(1, 2, 3, 2, 4, 2, torch.float32, CPU)
    size = resident.num_bytes
    for token in range(5):
        assert resident.lengths.tolist() == [token]
        append(resident, float(token))
    assert resident.window_room().tolist() == [0]
    assert resident.rows[0, :, 0].tolist() == [0, 1, 2, 3, 4, 0, 0]
    assert int(resident.num_resident) == 5
    resident.advance(resident.lengths, resident.window_start + 2)
    assert int(resident.num_resident) == 3
    append(resident, 5.0)
    assert resident.rows[0, :5, 0].tolist() == [0, 1, 5, 3, 4]
    assert (resident.bias[0, 0] == 0).tolist() == [True, True, True, False, True, False, False]
    assert resident.num_bytes == size
    assert resident.keys.shape == (1, 7, 4)
    assert resident.values.shape == (1, 7, 2)


def test_bytes_are_counted_where_they_move() -> None:
    pool, rows = filled_pool([8, 8])
    resident, transfer = ResidentSet(2, 1, 1, 4, 4, 2, torch.float32, CPU), Transfer(CPU)
    assert pool.in_place, "what a GPU would copy can be read where it lies"
    change = resident.change_to(torch.tensor([[7, -1], [0, 3]]), counts=transfer.chosen)
    transfer.fetch(pool, change, resident.retrieved)
    assert resident.rows.eq(0).all()
    resident.fill(change, pool.rows, change.place)
    assert torch.equal(resident.retrieved[0, 0], rows[0, 7])
    assert torch.equal(resident.retrieved[1, :2], rows[1, [0, 3]])
    assert transfer.traffic.fetched_tokens == 3
    assert transfer.traffic.fetched_bytes == 3 * 24
    transfer.offload(pool, rows[:, :2], torch.zeros(2, 2), torch.tensor([2, 1]))
    assert transfer.traffic.offloaded_bytes == 3 * 24
    chunks = list(transfer.read(pool, 4))
    assert torch.equal(torch.cat([chunk for chunk, _ in chunks], 1), pool.rows[:, :10])
    assert [present if present is None else present.sum(1).tolist() for _, present in chunks] == [None, None, [2, 1]]
    # Chunks move whole, with the place of the token that is missing.
    assert transfer.traffic.fetched_bytes == 3 * 24 + 20 * 24
    told = list(transfer.read(pool, 4, [10, 9]))
    assert [width.shape[1] for width, _ in told] == [4, 4, 2]
    assert all(torch.equal(one[0], other[0]) for one, other in zip(chunks, told, strict=True))
    pool.rows.fill_(9)
    assert not chunks[0][0].eq(9).any(), "the device gets a copy"


def test_available_memory_respects_the_control_group(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    free = available_host_memory()
    assert free > 2**20
    monkeypatch.setattr(pool_module, "_CGROUP", tmp_path)
    for name, text in (("memory.max", "1000"), ("memory.current", "700"), ("memory.stat", "anon 1\ninactive_file 200")):
        (tmp_path / name).write_text(text)
    # What another test has locked and left counts too.
    monkeypatch.setattr(pool_module, "free_bytes", lambda: 7)
    assert available_host_memory() == 507
    (tmp_path / "memory.max").write_text("max")
    assert available_host_memory() > 2**20
