"""Tiny random models of every supported family, built from a config: no download, no temporal locality."""

from collections.abc import Callable
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

VOCABULARY = 200

COMMON: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "max_position_embeddings": 1024,
    "initializer_range": 0.3,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
EXPERTS = {"moe_intermediate_size": 32, "num_experts": 4, "num_experts_per_tok": 2}

# Only what differs from COMMON, by transformers' name of the family.
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {},
    "qwen2": {},
    "qwen3": {"head_dim": 16},
    "qwen3_moe": {"head_dim": 16, **EXPERTS},
    "mistral": {"sliding_window": None, "head_dim": 8},
    "mixtral": {"num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": None},
    "gemma2": {"head_dim": 16, "sliding_window": 24, "query_pre_attn_scalar": 16},
    "gemma3_text": {"head_dim": 16, "sliding_window": 24, "query_pre_attn_scalar": 16, "num_hidden_layers": 6},
    "smollm3": {},
    "phi": {"num_key_value_heads": 4},
    "phi3": {"sliding_window": None},
    "gpt_oss": {
        "head_dim": 16,
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
        "sliding_window": 24,
        "initializer_range": 0.2,
    },
    "olmo3": {"sliding_window": 24},
    "granite": {},
    "cohere2": {"sliding_window": 24, "logit_scale": 1.0},
    "glm4": {"head_dim": 16},
    "starcoder2": {"sliding_window": None},
    "stablelm": {},
    "qwen3_next": {
        "head_dim": 16,
        **EXPERTS,
        "shared_expert_intermediate_size": 32,
        "linear_num_key_heads": 2,
        "linear_num_value_heads": 4,
        "linear_key_head_dim": 16,
        "linear_value_head_dim": 16,
        "layer_types": ["linear_attention", "full_attention", "linear_attention", "full_attention"],
    },
}


def tiny(family: str, dtype: torch.dtype = torch.float32, seed: int = 0, **overrides: Any) -> PreTrainedModel:
    """Build the tiny model of a family."""
    config = AutoConfig.for_model(family, **{**COMMON, **FAMILIES.get(family, {}), **overrides})
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation="eager").eval()
    sinks = [parameter for name, parameter in model.named_parameters() if name.endswith("sinks")]
    for parameter in sinks:
        torch.nn.init.normal_(parameter)
    return model


def prompt(length: int, batch_size: int = 1, padding: tuple[int, ...] = (), seed: int = 0) -> dict[str, torch.Tensor]:
    """Random token ids with left padding of the given widths."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(3, VOCABULARY, (batch_size, length), generator=generator)
    mask = torch.ones_like(ids)
    for sequence, width in enumerate(padding):
        ids[sequence, :width] = 0
        mask[sequence, :width] = 0
    return {"input_ids": ids, "attention_mask": mask}


def greedy(model: PreTrainedModel, inputs: dict[str, torch.Tensor], num_tokens: int, **options: Any) -> torch.Tensor:
    """Generate exactly `num_tokens` tokens; padding is suppressed, its zero embedding would tie scores."""
    length = {"max_new_tokens": num_tokens, "min_new_tokens": num_tokens}
    with torch.inference_mode():
        return model.generate(**inputs, **{"do_sample": False, "suppress_tokens": [0], **length, **options})  # type: ignore[operator]


Build = Callable[..., PreTrainedModel]
