"""What the engine is doing, and what an answer attends to."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from louiskv.cache import LouisKVCache


@dataclass(frozen=True)
class Figures:
    """The engine between two of its turns; counts are since it was made.

    Attributes:
        running: Answers that are being decoded.
        taking_in: Requests whose prompt is being taken in.
        waiting: Requests behind them.
        kept: Conversations that can be gone on with.
        kept_bytes: Bytes of theirs, wherever they are.
        rows: Rows that the batch has, idle ones included.
        kv_heads: KV heads of all managed layers; 0 without any sequence.
        resident_tokens: Tokens of KV heads in the resident sets on the device, prompts on their way included.
        host_tokens: Those in the pools on the host, where they stay when they are fetched.
        seen_tokens: All that were taken in.
        resident_bytes: Bytes of the resident sets.
        index_bytes: Bytes of their indices.
        host_bytes: Bytes of their pools.
        seen_bytes: Bytes that full attention would hold on the device.
        fetched_bytes: Bytes copied from the host.
        prompt_tokens: Tokens of prompts that were computed.
        cached_tokens: Tokens of prompts that were there from earlier turns.
        output_tokens: Tokens of answers.
        retrieval_rate: Share of (step, answer, layer, KV head) that retrieved.
        captured: How often a step was captured as a graph.
    """

    running: int
    taking_in: int
    waiting: int
    kept: int
    kept_bytes: int
    rows: int
    kv_heads: int
    resident_tokens: int
    host_tokens: int
    seen_tokens: int
    resident_bytes: int
    index_bytes: int
    host_bytes: int
    seen_bytes: int
    fetched_bytes: int
    prompt_tokens: int
    cached_tokens: int
    output_tokens: int
    retrieval_rate: float
    captured: int


def held_by(caches: Sequence[LouisKVCache]) -> dict[str, int]:
    """What lies where of all sequences in some caches, by the names that `Figures` has; this waits for the device."""
    layers = [[layer.state for layer in each.managed if layer.state.batch_size] for each in caches]
    tiers = [state.tiers() for states in layers for state in states]
    return {
        "kv_heads": sum(state.num_kv_heads for states in layers[-1:] for state in states),
        "resident_tokens": sum(each.resident.tokens for each in tiers),
        "host_tokens": sum(each.host.tokens for each in tiers),
        "seen_tokens": sum(each.seen.tokens for each in tiers),
        "resident_bytes": sum(each.resident.bytes for each in tiers),
        "index_bytes": sum(each.index.bytes for each in tiers),
        "host_bytes": sum(each.host.bytes for each in tiers),
        "seen_bytes": sum(each.seen.bytes for each in tiers),
    }


@dataclass
class Counters:
    """What is counted over all requests."""

    prompt_tokens: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0
    steps: int = 0
    fired: float = 0.0

    @property
    def retrieval_rate(self) -> float:
        """Share of (step, answer, layer, KV head) that retrieved."""
        return self.fired / self.steps if self.steps else 0.0


@dataclass(frozen=True)
class Attended:
    """What an answer attends to exactly.

    Attributes:
        layers: Index of each managed layer.
        heads: KV heads of each.
        now: [L, T] KV heads of each layer that attend to each position.
        since: [L, T] the same summed over all steps of the answer; None unless the request is watched.
        fired: For each step, the share of the KV heads of all layers that retrieved.
    """

    layers: tuple[int, ...]
    heads: tuple[int, ...]
    now: Tensor
    since: Tensor | None
    fired: tuple[float, ...]

    @classmethod
    def of(cls, kv_cache: LouisKVCache, row: int, since: Tensor | None, fired: tuple[float, ...]) -> "Attended":
        """Of a row of a cache as it is now; this waits for the device."""
        layers, heads = zip(*((layer.index, layer.state.num_kv_heads) for layer in kv_cache.managed), strict=True)
        return cls(layers, heads, attended_by(kv_cache, row), since, fired)


def attended_by(kv_cache: LouisKVCache, row: int) -> Tensor:
    """[L, T] how many KV heads of each layer attend to each position of a row of T tokens; waits for the device."""
    length = kv_cache.lengths[row]
    counts = []
    for layer in kv_cache.managed:
        positions = layer.state.attended_positions().unflatten(0, (layer.state.batch_size, -1))[row].flatten()
        counts.append(torch.bincount(positions[positions >= 0].cpu(), minlength=length)[:length])
    return torch.stack(counts)
