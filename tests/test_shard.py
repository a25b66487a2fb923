"""Where a layer's heads are; what two ranks do with it is in test_tensor_parallel.py."""

from copy import deepcopy
from typing import Any

import pytest
import torch
from transformers.distributed import DistributedConfig

from louiskv import UnsupportedModelError
from louiskv.shard import WHOLE, Shard, check_heads, on_this_rank, splits_heads
from tests.families import tiny


def test_a_model_in_one_process_is_whole_and_asks_nobody() -> None:
    assert Shard.of(tiny("llama")) is WHOLE
    figures = torch.tensor([0.5, 0.25])
    assert WHOLE.mean(figures) is figures
    assert WHOLE.gather(3) == [3]
    assert (WHOLE.part, WHOLE.num_parts) == (0, 1)


def test_ranks_that_have_all_heads_hold_one_part() -> None:
    assert (Shard(rank=1, num_ranks=2).part, Shard(rank=1, num_ranks=2).num_parts) == (0, 1)
    split = Shard(rank=1, num_ranks=2, splits_heads=True)
    assert (split.part, split.num_parts) == (1, 2)


def test_a_copy_is_on_the_same_ranks() -> None:
    split = Shard(rank=1, num_ranks=2, splits_heads=True, group=object())
    assert deepcopy(split) is split


@pytest.mark.parametrize(
    ("plan", "splits"),
    [
        ({"layers.*.self_attn.k_proj": "colwise"}, True),
        ({"layers.*.attention.query_key_value": "colwise"}, True),
        ({"layers.*.self_attn.qkv_proj": "colwise_gather_output"}, False),
        ({"layers.*.mlp.up_proj": "colwise", "embed_tokens": "embedding_rowwise"}, False),
        ({}, False),
    ],
)
def test_a_plan_splits_heads_where_each_rank_keeps_its_keys(plan: dict[str, str], splits: bool) -> None:
    assert splits_heads(plan) == splits


@pytest.mark.parametrize(("heads", "ranks", "allowed"), [(8, 3, "1 or 2 or 4 or 8"), (2, 4, "1 or 2"), (1, 2, "1")])
def test_kv_heads_are_not_cut(heads: int, ranks: int, allowed: str) -> None:
    message = f"model has {heads} KV heads .* {ranks} ranks .* Use {allowed} ranks"
    with pytest.raises(UnsupportedModelError, match=message):
        check_heads("model", heads, ranks)


def test_kv_heads_that_can_be_shared_evenly() -> None:
    for ranks in (1, 2, 4, 8):
        check_heads("model", 8, ranks)


def test_layers_spread_over_ranks_are_refused() -> None:
    model: Any = tiny("llama")
    model._device_mesh = object()
    model.config.distributed_config = DistributedConfig(pp_size=2)
    with pytest.raises(UnsupportedModelError, match="pipeline parallelism"):
        Shard.of(model)


def test_a_tensor_that_is_not_spread_is_here() -> None:
    tensor = torch.ones(2)
    assert on_this_rank(tensor) is tensor
