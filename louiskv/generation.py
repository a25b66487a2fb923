"""`louiskv.generate`: as `model.generate`, but a decode step is one replay of a CUDA graph where that is possible."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import GenerationConfig, PreTrainedModel, StoppingCriteriaList
from transformers.generation.streamers import BaseStreamer

from louiskv.attach import attach
from louiskv.cache import LouisKVCache, chunks, passing
from louiskv.captured import CapturedStep, EagerStep, why_not
from louiskv.errors import SettingsError
from louiskv.methods.base import Method
from louiskv.telemetry import Report


class Generated(NamedTuple):
    """What was generated, and how.

    Attributes:
        sequences: [B, T] prompts with what followed, as `model.generate` returns them.
        report: What the cache did.
        eager: Why the steps were not replayed from a graph; None if they were.
    """

    sequences: Tensor
    report: Report
    eager: str | None


def generate(
    model: PreTrainedModel,
    method: Method,
    inputs: Tensor | None = None,
    *,
    impl: str | None = None,
    graph: bool | None = None,
    streamer: BaseStreamer | None = None,
    **settings: Any,
) -> Generated:
    """Generate greedily or by sampling, with keys and values managed by a method.

    On a GPU the decode step of most methods is captured in a CUDA graph, once, and replayed for each token; everything
    else runs as `model.generate` does inside `attach`.

    Args:
        model: As `attach` takes it.
        method: What to keep where.
        inputs: [B, T] token ids; or `input_ids=` among the settings.
        impl: Implementation of the operations; None takes the best that can run.
        graph: Whether to replay a graph; None where it is possible.
        streamer: Gets tokens as they come, as transformers' streamers do.
        **settings: What else `model.generate` takes: `max_new_tokens`, `attention_mask`, `do_sample`, ...

    Returns:
        Sequences, the report, and why no graph was replayed, if so.

    Raises:
        SettingsError: `graph=True` where there can be none, or beams, or a cache of one's own.
        UnsupportedModelError: As `attach` raises it.
    """
    for name in ("cache", "past_key_values"):
        if settings.get(name) is not None:
            raise SettingsError(
                f"{name} is not allowed: louiskv.generate makes its cache. Use louiskv.attach to keep one."
            )
    ids = settings.pop("input_ids", None) if inputs is None else inputs
    with attach(model, method, impl=impl) as kv_cache:
        reason = "graph=False" if graph is False else why_not(model, kv_cache)
        if graph and reason is not None:
            raise SettingsError(f"graph=True is not possible: {reason}. Use graph=None to run without.")
        given = {"inputs": ids, **settings, **passing(model, kv_cache)}
        given |= decoding(kv_cache, streamer) if reason is None else {"streamer": streamer}
        run: Any = model.generate
        sequences = run(**given)
        return Generated(getattr(sequences, "sequences", sequences), kv_cache.report(), reason)


def decoding(kv_cache: LouisKVCache, streamer: BaseStreamer | None = None) -> dict[str, Any]:
    """What makes `model.generate` replay a graph with this cache; see `captured.why_not` for where it can."""
    return {"custom_generate": _Loop(kv_cache, CapturedStep, streamer)}


class _Loop:
    """A decoding loop for `model.generate`, which prepares and checks all that it is given."""

    def __init__(self, kv_cache: LouisKVCache, step: type[EagerStep], streamer: BaseStreamer | None) -> None:
        self.kv_cache, self.step, self.streamer = kv_cache, step, streamer

    def __call__(
        self,
        model: PreTrainedModel,
        input_ids: Tensor,
        logits_processor: Callable[[Tensor, Tensor], Tensor],
        stopping_criteria: StoppingCriteriaList,
        generation_config: GenerationConfig,
        **model_kwargs: Any,
    ) -> Tensor:
        """Returns [B, T] prompts with what followed."""
        if generation_config.num_beams not in (None, 1):
            raise SettingsError(
                f"num_beams={generation_config.num_beams} is not allowed: louiskv.generate follows one sequence each. "
                "Use model.generate inside louiskv.attach."
            )
        if self.streamer is not None:
            self.streamer.put(input_ids.cpu())
        mask = model_kwargs.get("attention_mask")
        mask = torch.ones_like(input_ids) if mask is None else mask
        positions = (mask.cumsum(1) - 1).clamp(min=0)
        known, length = self.kv_cache.get_seq_length(), input_ids.shape[1]
        chunk = generation_config.prefill_chunk_size or length
        self.kv_cache.expect(stopping_criteria.max_length or length)
        # Looked at once, and not with each chunk.
        padded = not bool(mask.all())
        for first, end in chunks(known, length, chunk):
            output = model(
                input_ids=input_ids[:, first:end],
                attention_mask=mask[:, :end] if padded else None,
                position_ids=positions[:, first:end],
                use_cache=True,
                logits_to_keep=1,
                **passing(model, self.kv_cache),
            )
        num_new = stopping_criteria.max_length - input_ids.shape[1] if stopping_criteria.max_length else 0
        self.kv_cache.reserve(num_new)
        step, ended = self.step(model, self.kv_cache, positions[:, -1]), _Ended(input_ids, generation_config)
        logits, room = output.logits[:, -1], input_ids.new_empty(len(input_ids), num_new)
        sequences = torch.cat([input_ids, room], dim=1)
        while True:
            if length == sequences.shape[1]:
                sequences = torch.cat([sequences, torch.empty_like(sequences)], dim=1)
            scores = logits_processor(sequences[:, :length], logits.to(torch.float32, copy=True))
            tokens = ended.pad(_choose(scores, generation_config))
            sequences[:, length] = tokens
            length += 1
            done = stopping_criteria(sequences[:, :length], scores)
            if ended.learn(tokens, done, self.streamer) or length == stopping_criteria.max_length:
                break
            logits = step.run(tokens)
        ended.finish(self.streamer)
        return sequences[:, : length - ended.num_late]


def _choose(scores: Tensor, config: GenerationConfig) -> Tensor:
    """[B] the next tokens."""
    if config.do_sample:
        return torch.multinomial(scores.softmax(-1), 1)[:, 0]
    return scores.argmax(-1)


class _Ended:
    """Which sequences have ended. On a GPU this is read one step late, while the next one runs: nothing waits.

    Attributes:
        num_late: Tokens of padding that came behind the end of all.
    """

    def __init__(self, input_ids: Tensor, config: GenerationConfig) -> None:
        self.pad_token = config._pad_token_tensor
        self.ended = torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)
        self.late = input_ids.is_cuda
        self.num_late = 0
        self._on_its_way: tuple[Tensor, Tensor, torch.cuda.Event] | None = None

    def pad(self, tokens: Tensor) -> Tensor:
        """The tokens [B], padding where a sequence has ended."""
        return tokens if self.pad_token is None else tokens.where(~self.ended, self.pad_token)

    def learn(self, tokens: Tensor, done: Tensor, streamer: BaseStreamer | None) -> bool:
        """Learn of the newest tokens [B] and where they end a sequence [B]; whether all have ended."""
        self.ended = self.ended | done
        if not self.late:
            if streamer is not None:
                streamer.put(tokens)
            return bool(self.ended.all())
        before = self._on_its_way
        here, event = tokens.to("cpu", non_blocking=True), torch.cuda.Event()
        ended = self.ended.to("cpu", non_blocking=True)
        event.record()
        self._on_its_way = here, ended, event
        if before is None or not self._arrived(before, streamer):
            return False
        self._on_its_way, self.num_late = None, 1
        return True

    def finish(self, streamer: BaseStreamer | None) -> None:
        """Hand over what is still on its way."""
        if self._on_its_way is not None:
            self._arrived(self._on_its_way, streamer)
        if streamer is not None:
            streamer.end()

    def _arrived(self, sent: tuple[Tensor, Tensor, torch.cuda.Event], streamer: BaseStreamer | None) -> bool:
        tokens, ended, event = sent
        event.synchronize()
        if streamer is not None:
            streamer.put(tokens)
        return bool(ended.all())
