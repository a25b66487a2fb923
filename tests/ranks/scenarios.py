"""What is done with a model, whole in one process or split over ranks."""

import json
from collections.abc import Callable
from copy import deepcopy
from typing import Any

import torch
from transformers import PreTrainedModel

from louiskv import LouisKV, Method, RazorAttention, Retrieval, attach, generate
from louiskv.cache import LouisKVCache, passing
from louiskv.triggers import Cosine, Every, Late
from louiskv.units.pages import Pages
from tests.families import COMMON, greedy, prompt, tiny
from tests.methods.test_contract import CASES

RANKS = 2
# Its trigger sees one rank's heads turn and the other's not.
LOUISKV = LouisKV(budget=40, sink=3, window=12, unit_size=4, max_segment=8, dense_layers=0, tau=0.1)

# Of each method the settings under which it must choose.
METHODS: dict[str, Method] = {
    **{name: choosing for name, (_, choosing) in CASES.items()},
    "louiskv": LOUISKV,
    "razor_attention": RazorAttention(window=10, share=0.3, sink=2, kv_heads=((2,), (0, 3))),
    "late": Retrieval(
        budget=40,
        sink=3,
        window=12,
        units=Pages(4),
        dense_layers=0,
        trigger=Late(correct=Cosine(0.0), when=Every(2)),
    ),
}

LAYERS = ["full_attention", "sliding_attention"]
MODELS: dict[str, Callable[[], PreTrainedModel]] = {
    "llama": lambda: tiny("llama", num_key_value_heads=4, num_hidden_layers=2),
    "qwen3": lambda: tiny("qwen3", num_key_value_heads=4, num_hidden_layers=2),
    "gemma3_text": lambda: tiny("gemma3_text", num_key_value_heads=4, num_hidden_layers=2, layer_types=LAYERS),
    # A full-attention layer with learned attention sinks, which are split with the heads.
    "granite_swa": lambda: tiny("granite_swa", num_key_value_heads=4, num_hidden_layers=2, layer_types=LAYERS),
    # Each rank has all heads of this.
    "phi3": lambda: tiny("phi3", num_key_value_heads=4, num_hidden_layers=2),
    "three_heads": lambda: tiny("llama", num_attention_heads=6, num_key_value_heads=3, hidden_size=48),
}
assert COMMON["num_attention_heads"] == 8


def conversation(model: PreTrainedModel, method: Method, copied: bool = False) -> dict[str, Any]:
    """Two turns of a batch with padding, the second one on a copy of the cache if asked for."""
    inputs, more = prompt(120, 3, (0, 17, 60)), prompt(16, 3, seed=1)
    with attach(model, method) as kv_cache:
        first = greedy(model, inputs, 14, **passing(model, kv_cache))
        later = deepcopy(kv_cache) if copied else kv_cache
        new = torch.ones(3, 30, dtype=torch.int64)
        whole = {
            "input_ids": torch.cat([first, more["input_ids"]], 1),
            "attention_mask": torch.cat([inputs["attention_mask"], new], 1),
        }
        second = greedy(model, whole, 8, **passing(model, later))
        later.check_integrity()
        return {"tokens": second[:, 120:].tolist(), "report": totals(later), "fired": fired(later)}


def totals(kv_cache: LouisKVCache) -> dict[str, Any]:
    """What the ranks together count as one process does."""
    report = kv_cache.report(all_ranks=True).to_dict()
    names = ("prompt_tokens", "output_tokens", "device_bytes", "host_bytes", "full_bytes")
    moved = ("fetched_bytes", "offloaded_bytes")
    counted = ("tiers", "selected_tokens", "segment_sizes", "retrieval_rate", "ahead_rate")
    layers = [{name: layer[name] for name in counted} for layer in report["layers"]]
    for layer in layers:
        layer.update({rate: layer[rate] and round(layer[rate], 6) for rate in ("retrieval_rate", "ahead_rate")})
    figures = {**{name: report[name] for name in (*names, *moved)}, "layers": layers}
    # As it is when it comes out of a file.
    found: dict[str, Any] = json.loads(json.dumps(figures))
    return found


def fired(kv_cache: LouisKVCache) -> list[Any]:
    """By layer and step, where this process's KV heads have retrieved."""
    return [layer.state.telemetry.fired.tensor().tolist() for layer in kv_cache.managed]


def beams(model: PreTrainedModel) -> list[Any]:
    """What beams find."""
    with attach(model, LOUISKV):
        found: list[Any] = greedy(model, prompt(60, 2, (0, 9)), 8, num_beams=3)[:, 60:].tolist()
    return found


def generated(model: PreTrainedModel) -> list[Any]:
    """What `louiskv.generate` gives."""
    options: dict[str, Any] = {"do_sample": False, "suppress_tokens": [0], "min_new_tokens": 12, "max_new_tokens": 12}
    found: list[Any] = generate(model, LOUISKV, prompt(100)["input_ids"], **options).sequences.tolist()
    return found
