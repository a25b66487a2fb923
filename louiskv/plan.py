"""What a method will need for a model, a context and a batch, worked out before anything is loaded."""

from dataclasses import asdict, dataclass
from typing import Any

import torch

from louiskv.cache import check_config, managed_layers
from louiskv.errors import HostMemoryError, SettingsError, UnsupportedModelError
from louiskv.methods.base import LayerShape, Method
from louiskv.shard import kv_heads_of
from louiskv.store.background import MOST_WAITING
from louiskv.store.pool import available_host_memory
from louiskv.telemetry import format_bytes


@dataclass(frozen=True)
class Plan:
    """Memory of each tier, in bytes, over all managed layers and the whole batch.

    Attributes:
        method: Name of the method.
        context: Tokens of each sequence, output included.
        batch_size: Sequences.
        managed_layers: Layers that the method manages.
        other_layers: Layers left alone (sliding windows and the like), not counted here.
        resident_bytes: Keys and values on the device.
        index_bytes: Index on the device.
        host_bytes: Keys and values on the host.
        retrieval_bytes: What one retrieval in all layers moves at the most.
        full_bytes: What full attention would hold on the device.
        prefill_bytes: Keys and values of the layers that lie on a GPU whole while a prompt is taken in, at the most.
    """

    method: str
    context: int
    batch_size: int
    managed_layers: int
    other_layers: int
    resident_bytes: int
    index_bytes: int
    host_bytes: int
    retrieval_bytes: int
    full_bytes: int
    prefill_bytes: int

    @property
    def device_bytes(self) -> int:
        """Resident set and index."""
        return self.resident_bytes + self.index_bytes

    @property
    def device_share(self) -> float:
        """Device bytes as a share of full attention's."""
        return self.device_bytes / self.full_bytes

    def prefill_on(self, device: torch.device) -> int:
        """`prefill_bytes` of a device: on a CPU no layer waits to be taken in, so there are two."""
        return self.prefill_bytes if device.type != "cpu" else 2 * self.full_bytes // self.managed_layers

    def to_dict(self) -> dict[str, Any]:
        """All figures as plain data."""
        return {**asdict(self), "device_bytes": self.device_bytes, "device_share": self.device_share}

    def check_host_memory(self, device: torch.device, available: int | None = None) -> None:
        """Raise `HostMemoryError` if the host cannot hold what it must.

        Args:
            device: Where the model runs; on a CPU the device's part lies in host memory too.
            available: Bytes to be had; None asks the system.
        """
        needed = self.host_bytes + (0 if device.type != "cpu" else self.device_bytes + self.prefill_on(device))
        available = available_host_memory() if available is None else available
        if needed > available:
            raise HostMemoryError(
                f"{self.method} needs {format_bytes(needed)} of host memory for {self.batch_size} x {self.context} "
                f"tokens, but {format_bytes(available)} are available. Use a shorter context, a smaller batch, or a "
                "16-bit dtype."
            )


def plan(config: Any, method: Method, context: int, *, batch_size: int = 1, dtype: torch.dtype = torch.float32) -> Plan:
    """Work out the memory of each tier.

    Args:
        config: Config of the model.
        method: The method.
        context: Tokens of each sequence, output included.
        batch_size: Sequences.
        dtype: Of keys and values.

    Raises:
        SettingsError: Context or batch is not positive.
        UnsupportedModelError: The model is of a kind that cannot be managed, or has no layer to manage.
    """
    for name, value in (("context", context), ("batch_size", batch_size)):
        if value < 1:
            raise SettingsError(f"{name}={value} is not allowed: give a number of at least 1.")
    check_config(config)
    decoder = config.get_text_config(decoder=True)
    managed = managed_layers(decoder)
    if not managed:
        raise UnsupportedModelError(f"{decoder.model_type} has no full-attention layer that louiskv could manage.")
    head_dim = getattr(decoder, "head_dim", None) or decoder.hidden_size // decoder.num_attention_heads
    heads = kv_heads_of(decoder)
    shape = LayerShape(heads, head_dim, head_dim, dtype.itemsize, decoder.num_attention_heads // heads)
    prints = [method.footprint(index, shape, context) for index in managed]
    one_layer = context * shape.token_bytes * batch_size
    return Plan(
        method=type(method).__name__,
        context=context,
        batch_size=batch_size,
        managed_layers=len(managed),
        other_layers=decoder.num_hidden_layers - len(managed),
        resident_bytes=sum(each.resident for each in prints) * batch_size,
        index_bytes=sum(each.index for each in prints) * batch_size,
        host_bytes=sum(each.host for each in prints) * batch_size,
        retrieval_bytes=sum(each.retrieval for each in prints) * batch_size,
        full_bytes=one_layer * len(managed),
        prefill_bytes=one_layer + max(one_layer, min(MOST_WAITING, (len(managed) - 1) * one_layer)),
    )
