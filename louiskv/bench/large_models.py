"""Shapes of large models, and models of these shapes whose weights are random."""

from collections.abc import Callable

import torch
from transformers import AutoModelForCausalLM, LlamaConfig, PretrainedConfig, PreTrainedModel, Qwen3Config

from louiskv.bench.memory import available
from louiskv.errors import DeviceMemoryError, HostMemoryError, SettingsError
from louiskv.telemetry import format_bytes

# Published sizes; no weights are needed.
MODELS: dict[str, Callable[[], PretrainedConfig]] = {
    "llama-3.1-8b": lambda: LlamaConfig(
        hidden_size=4096,
        intermediate_size=14336,
        num_hidden_layers=32,
        num_attention_heads=32,
        num_key_value_heads=8,
        head_dim=128,
        vocab_size=128256,
        max_position_embeddings=131072,
        bos_token_id=None,
        eos_token_id=None,
    ),
    "qwen3-8b": lambda: Qwen3Config(
        hidden_size=4096,
        intermediate_size=12288,
        num_hidden_layers=36,
        num_attention_heads=32,
        num_key_value_heads=8,
        head_dim=128,
        vocab_size=151936,
        max_position_embeddings=131072,
        bos_token_id=None,
        eos_token_id=None,
    ),
}


def config_of(name: str, num_layers: int | None = None) -> PretrainedConfig:
    """The config of a model by name, with fewer layers if so many are given.

    Raises:
        SettingsError: There is no such name, or it has fewer layers.
    """
    if name not in MODELS:
        raise SettingsError(f"There is no shape {name!r}. There are: {', '.join(MODELS)}.")
    config = MODELS[name]()
    if num_layers is not None:
        if not 1 <= num_layers <= config.num_hidden_layers:
            raise SettingsError(f"--layers {num_layers} is not allowed: {name} has 1 to {config.num_hidden_layers}.")
        config.num_hidden_layers = num_layers
        if getattr(config, "layer_types", None):
            config.layer_types = config.layer_types[:num_layers]
    return config


def check_fits(config: PretrainedConfig, dtype: torch.dtype, device: torch.device) -> None:
    """Refuse a model whose weights alone have no room.

    Raises:
        HostMemoryError: They do not fit into the host's memory.
        DeviceMemoryError: They do not fit into the device's memory.
    """
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, dtype=dtype)
    size, there = sum(each.numel() for each in model.parameters()) * dtype.itemsize, available(device)
    on_host = device.type == "cpu"
    room = there.host if on_host else there.device
    if size > room:
        kind, place = (HostMemoryError, "host") if on_host else (DeviceMemoryError, "device")
        raise kind(
            f"The weights need {format_bytes(size)} of {place} memory, but {format_bytes(room)} can be used. Nothing "
            "was measured. Give fewer --layers or --dtype bfloat16."
        )


def random_model(config: PretrainedConfig, dtype: torch.dtype, device: torch.device) -> PreTrainedModel:
    """A model of that config with random weights, made on the device."""
    torch.manual_seed(0)
    with torch.device(device):
        model: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation="sdpa")
    model.eval()
    return model
