"""Tokens between device and host: the kernels' logic on the host, and every implementation wherever it can run."""

import pytest
import torch
from torch import Tensor

from louiskv.errors import ImplementationError
from louiskv.ops import moving_cuda  # noqa: F401
from louiskv.ops.moving import fetch_rows, store_rows
from tests.ops import cuda_on_host
from tests.ops.devices import host_tensor, on_each_device, repeated, wait

NUM_ROWS, CAPACITY, NUM_SLOTS, NUM_NEW = 3, 50, 70, 37
# Numbers of a token, and how many a slot is off an aligned address: words of 16 bytes and of fewer.
WIDTHS = [(64, 0), (64, 1), (48, 4), (80, 8), (12, 0), (6, 0), (1, 0), (519, 0), (4096, 0)]
DTYPES = [torch.uint8, torch.bfloat16, torch.float32, torch.int64]
# Slots that a warp looks after, and the widest words.
GROUPS = [(32, 16), (32, 1), (8, 16), (1, 4)]


def numbers(shape: tuple[int, ...], dtype: torch.dtype, seed: int) -> Tensor:
    return torch.randint(0, 100, shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def fetching(width: int, off: int, dtype: torch.dtype) -> dict[str, Tensor]:
    """What `fetch_rows` takes: a part of wider slots, and places that are wild where nothing is missing."""
    generator = torch.Generator().manual_seed(width)
    missing = torch.rand(NUM_ROWS, NUM_SLOTS, generator=generator) < torch.tensor([[0.1], [1.0], [0.5]])
    place = torch.randint(0, CAPACITY, missing.shape, generator=generator).masked_fill(~missing, -(10**6))
    slots = numbers((NUM_ROWS, NUM_SLOTS + 9, off + width), dtype, 1)
    source = numbers((NUM_ROWS, CAPACITY, width), dtype, 2)
    target = slots[:, 5 : 5 + NUM_SLOTS, off:]
    # Tokens of an odd number of numbers are told in 64 bits.
    return {"source": source, "place": place if width % 2 else place.int(), "missing": missing, "target": target}


def slots_of(takes: dict[str, Tensor]) -> Tensor:
    slots = takes["target"]._base
    assert slots is not None
    return slots


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("width", "off"), WIDTHS)
def test_the_host_fetches_what_is_missing(width: int, off: int, dtype: torch.dtype) -> None:
    expected = fetching(width, off, dtype)
    fetch_rows(**expected, impl="torch")
    for group, most_bytes in GROUPS:
        got = fetching(width, off, dtype)
        cuda_on_host.fetch_rows(**got, group=group, most_bytes=most_bytes)
        assert torch.equal(slots_of(got), slots_of(expected))


@on_each_device("fetch_rows", *DTYPES)
@pytest.mark.parametrize(("width", "off"), WIDTHS)
def test_fetches_what_is_missing(impl: str, device: str, width: int, off: int, dtype: torch.dtype) -> None:
    takes = fetching(width, off, dtype)
    place, missing = takes["place"].to(device), takes["missing"].to(device)
    on_host, on_device = host_tensor(takes["source"], device), takes["source"].to(device)
    targets = []
    for source in (on_host, on_device):
        slots = slots_of(takes).to(device, copy=True)
        fetch_rows(source, place, missing, slots[:, 5 : 5 + NUM_SLOTS, off:], impl=impl)
        targets.append(slots)
    wait(device)
    fetch_rows(**takes, impl="torch")
    for slots in targets:
        assert torch.equal(slots.cpu(), slots_of(takes))


# Of one entry.
SHAPES: list[tuple[int, ...]] = [(), (1,), (3,), (8,), (128,), (4, 33)]


def storing(shape: tuple[int, ...], dtype: torch.dtype, *, is_view: bool) -> dict[str, Tensor]:
    wide = numbers((NUM_ROWS + 1, NUM_NEW + 3, *shape), dtype, 3)
    rows = wide[1:, 2 : 2 + NUM_NEW] if is_view else wide[1:, :NUM_NEW].contiguous()
    lengths, counts = torch.tensor([0, 13, 20]), torch.tensor([NUM_NEW, 0, 30])
    return {
        "target": numbers((NUM_ROWS, CAPACITY, *shape), dtype, 4),
        "lengths": lengths,
        "rows": rows,
        "counts": counts,
    }


@pytest.mark.parametrize("is_view", [False, True])
@pytest.mark.parametrize("dtype", [*DTYPES, torch.bool])
@pytest.mark.parametrize("shape", [*SHAPES, (2, 2, 64)])
def test_the_host_stores_behind_what_there_is(shape: tuple[int, ...], dtype: torch.dtype, is_view: bool) -> None:
    expected = storing(shape, dtype, is_view=is_view)
    store_rows(**expected, impl="torch")
    for group in (32, 4, 1):
        got = storing(shape, dtype, is_view=is_view)
        cuda_on_host.store_rows(**got, group=group)
        assert torch.equal(got["target"], expected["target"])


@on_each_device("store_rows", *DTYPES, torch.bool)
@pytest.mark.parametrize("is_view", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
def test_stores_behind_what_there_is(
    impl: str, device: str, shape: tuple[int, ...], dtype: torch.dtype, is_view: bool
) -> None:
    takes = storing(shape, dtype, is_view=is_view)
    lengths, counts = takes["lengths"].to(device), takes["counts"].to(device)
    wide = torch.empty(NUM_ROWS, NUM_NEW + 1, *shape, dtype=dtype, device=device)
    rows = wide[:, 1:] if is_view else takes["rows"].to(device)
    rows.copy_(takes["rows"])
    targets = [host_tensor(takes["target"], device), takes["target"].to(device, copy=True)]
    for target in targets:
        store_rows(target, lengths, rows, counts, impl=impl)
    wait(device)
    store_rows(**takes, impl="torch")
    for target in targets:
        assert torch.equal(target.cpu(), takes["target"])


@on_each_device("store_rows")
def test_one_token_after_the_other_goes_out_and_comes_back(impl: str, device: str) -> None:
    """As in decoding: on a GPU the step is a graph, and nothing waits."""
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randn(2, 20, 24, generator=generator).to(device)
    pool = host_tensor(torch.zeros(2, 20, 24), device)
    lengths, counts = torch.zeros(2, dtype=torch.long, device=device), torch.tensor([1, 0], device=device)
    slots, token = torch.zeros(2, 5, 24, device=device), torch.zeros(2, 1, 24, device=device)
    place = torch.zeros(2, 5, dtype=torch.int32, device=device)
    missing = torch.tensor([[True, False, False, False, True], [False] * 5], device=device)

    def step() -> None:
        store_rows(pool, lengths, token, counts, impl=impl)
        fetch_rows(pool, place, missing, slots, impl=impl)

    again = repeated(step, impl, device)
    for number in range(20):
        token.copy_(tokens[:, number : number + 1])
        place.fill_(number)
        lengths.fill_(number)
        again()
        wait(device)
        for slot in (0, 4):
            assert torch.equal(slots[0, slot], tokens[0, number])
    assert (
        torch.equal(pool[0], tokens[0].cpu()) and not pool[1].any() and not slots[1].any() and not slots[0, 1:4].any()
    )


@on_each_device("fetch_rows")
def test_what_cannot_be_reached_or_is_not_dense_is_refused(impl: str, device: str) -> None:
    source, slots = torch.zeros(1, 4, 8), torch.ones(1, 2, 8, device=device)
    place, missing = torch.zeros(1, 2, dtype=torch.int32, device=device), torch.ones(1, 2, device=device).bool()
    counts = torch.ones(1, dtype=torch.long, device=device)
    if impl == "triton" and device == "cuda":
        with pytest.raises(ValueError, match="cannot be accessed from Triton"):
            fetch_rows(source, place, missing, slots, impl=impl)
        return
    if impl != "cuda":
        fetch_rows(source, place, missing, slots, impl=impl)
        assert not slots.any()
        return
    with pytest.raises(ImplementationError, match="host memory that is not pinned"):
        fetch_rows(source, place, missing, slots, impl=impl)
    with pytest.raises(ImplementationError, match="host memory that is not pinned"):
        store_rows(source, counts, slots, counts, impl=impl)
    with pytest.raises(ImplementationError, match="dense tokens: torch.float32"):
        fetch_rows(source.pin_memory(), place, missing, slots.transpose(1, 2), impl=impl)
    with pytest.raises(ImplementationError, match="counts lies on cpu, not on cuda"):
        store_rows(source.pin_memory(), counts, slots, counts.cpu(), impl=impl)


def test_traced_the_kernels_change_their_targets_and_give_nothing() -> None:
    for name in ("fetch_rows", "store_rows"):
        schema = getattr(torch.ops.louiskv_cuda, name).default._schema
        changed = [each.name for each in schema.arguments if each.alias_info is not None and each.alias_info.is_write]
        assert changed == ["target"] and not schema.returns


@pytest.mark.parametrize(("bits", "word"), [(0, 16), (32, 16), (24, 8), (4, 4), (6, 2), (1 << 40 | 1, 1)])
def test_words_are_as_wide_as_all_allows(bits: int, word: int) -> None:
    assert cuda_on_host.word_bytes(bits) == word
