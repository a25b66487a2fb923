"""The plan against what a cache really allocates, and the check of host memory."""

from dataclasses import replace

import pytest
import torch
from transformers import AutoConfig

from louiskv import (
    Full,
    FullOffloaded,
    HostMemoryError,
    LouisKV,
    LouisKVPlus,
    Method,
    SettingsError,
    UnsupportedModelError,
    attach,
    models,
)
from louiskv.cache import passing
from louiskv.methods.base import KVLayer, LayerShape
from louiskv.methods.per_query_head import PerQueryHead
from louiskv.methods.retrieval import Retrieval
from louiskv.methods.retrieval_layer import RetrievalLayer
from louiskv.plan import plan
from louiskv.units.index import TABLE_BYTES
from louiskv.units.pages import Pages
from louiskv.units.summaries import Sketch
from louiskv.units.tokens import Tokens
from tests.families import prompt, tiny


def bytes_in_place(state: KVLayer) -> int:
    if isinstance(state, PerQueryHead):
        return bytes_in_place(state.state)
    if not isinstance(state, RetrievalLayer) or not state.resident.in_place:
        return 0
    return state.resident.slot_place.numel() * state.resident.token_size


@pytest.mark.parametrize(
    "method",
    [
        Full(),
        FullOffloaded(),
        LouisKV(budget=200, sink=8, window=56, dense_layers=1, iterations=1),
        LouisKVPlus(budget=200, sink=8, window=56, dense_layers=1, iterations=1),
        Retrieval(budget=208, sink=8, window=64, dense_layers=1, units=Pages(16), per_query_head=True),
        Retrieval(budget=208, sink=8, window=64, dense_layers=1, units=Pages(16), pool_bits=4),
        Retrieval(budget=208, sink=8, window=64, dense_layers=1, units=Pages(16), pool_bits=8, store="device"),
    ],
)
def test_the_plan_is_what_is_allocated(method: Method) -> None:
    model = tiny("llama", max_position_embeddings=4096)
    num_tokens = 3000
    planned = plan(model.config, method, num_tokens, batch_size=2)
    with attach(model, method) as cache, torch.inference_mode():
        model(**prompt(num_tokens, 2), **passing(model, cache), logits_to_keep=1)
        report = cache.report()
    index = sum(layer.tiers.index.bytes for layer in report.layers)
    resident = report.device_bytes - index
    # The plan is of a GPU, where what is retrieved lies in slots; on a CPU it stays in the pool.
    resident += sum(bytes_in_place(layer.state) for layer in cache.managed)
    # On the device, room to grow and bookkeeping come on top: at most a tenth.
    assert planned.full_bytes == report.full_bytes
    assert planned.host_bytes * 0.98 <= report.host_bytes <= planned.host_bytes * 1.02
    assert planned.resident_bytes <= resident <= planned.resident_bytes * 1.1 + 65536
    assert planned.index_bytes <= index * 1.05
    assert index <= planned.index_bytes * 1.1 + 65536
    assert planned.device_bytes == planned.resident_bytes + planned.index_bytes


def test_bundles_are_a_sixteenth_of_the_summaries_of_units() -> None:
    shape = LayerShape(num_kv_heads=2, key_dim=8, value_dim=8, item_size=4, group_size=4)
    units = Tokens(16)
    flat = Retrieval(budget=100, sink=4, window=16, dense_layers=0, units=units, summary=Sketch(token_bits=False))
    planned, with_bundles = (method.footprint(0, shape, 20 + 1600) for method in (flat, replace(flat, max_looked=112)))
    assert planned.index == 2 * 1600 * (8 + 8 + 6 + TABLE_BYTES)
    assert with_bundles.index - planned.index == 2 * 100 * (8 + 8 + 6)
    layer = replace(flat, max_looked=112).layer(0)
    layer.begin(1, 2, 8)
    layer.absorb(torch.randn(1, 2, 1620, 8), torch.randn(1, 2, 1620, 8), None)
    # Two counts of each row are what no unit has a part in.
    assert layer.tiers().index.bytes == with_bundles.index + 2 * 2 * 8


def test_only_full_attention_layers_count() -> None:
    config = tiny("gemma2").config
    planned = plan(config, Full(), 100)
    assert (planned.managed_layers, planned.other_layers) == (2, 2)
    assert planned.full_bytes == 2 * 100 * 2 * (16 + 16) * 4


def test_planning_needs_no_weights() -> None:
    planned = plan(models.load_config(), LouisKV(budget=512), 32768, dtype=torch.bfloat16)
    assert planned.full_bytes == 32768 * 30 * 3 * 128 * 2
    assert planned.device_share <= 0.12


def test_too_little_host_memory_is_refused() -> None:
    planned = plan(tiny("llama").config, LouisKV(), 10**6)
    with pytest.raises(HostMemoryError, match=r"LouisKV needs .* for 1 x 1000000 tokens, but 1.0 MiB are available"):
        planned.check_host_memory(torch.device("cpu"), available=2**20)
    planned.check_host_memory(torch.device("cpu"), available=2**50)
    assert planned.host_bytes < planned.host_bytes + planned.device_bytes
    planned.check_host_memory(torch.device("cuda"), available=planned.host_bytes)


def test_wrong_sizes_are_refused() -> None:
    config = tiny("llama").config
    for context, batch_size in ((0, 1), (-5, 1), (10, 0)):
        with pytest.raises(SettingsError, match="at least 1"):
            plan(config, Full(), context, batch_size=batch_size)
    for encoder in ("bert", "t5"):
        with pytest.raises(UnsupportedModelError, match="is an encoder"):
            plan(AutoConfig.for_model(encoder), Full(), 10)
    mamba = AutoConfig.for_model("mamba", vocab_size=50, hidden_size=16, num_hidden_layers=2)
    with pytest.raises(UnsupportedModelError, match="no full-attention layer"):
        plan(mamba, Full(), 10)


def test_layers_that_wait_to_be_taken_in_count_on_a_gpu_alone() -> None:
    sizes = {"num_hidden_layers": 30, "hidden_size": 576, "num_attention_heads": 9, "num_key_value_heads": 3}
    # Of 48 MiB each, five wait beside the one that is computed, and part of another would fit.
    for context, most in ((1024, 30), (32768, 7), (262144, 2)):
        planned = plan(AutoConfig.for_model("llama", **sizes), LouisKV(), context)
        layer = context * 2 * 3 * 64 * 4
        assert planned.prefill_on(torch.device("cpu")) == 2 * layer
        assert planned.prefill_on(torch.device("cuda")) == planned.prefill_bytes
        assert (most - 1) * layer < planned.prefill_bytes <= most * layer
