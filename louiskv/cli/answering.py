"""One answer of a model: checks before, progress, text and Ctrl-C during, figures after."""

import copy
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase, StoppingCriteriaList

from louiskv.attach import attach
from louiskv.cache import LouisKVCache, passing
from louiskv.captured import why_not
from louiskv.cli.loading import ready
from louiskv.cli.options import Sampling
from louiskv.cli.streaming import Interruption, StoppedError, Streamer
from louiskv.errors import DeviceMemoryError
from louiskv.generation import decoding
from louiskv.methods import Method
from louiskv.plan import plan


@dataclass(frozen=True)
class Answer:
    """What a model generated.

    Attributes:
        text: Text.
        tokens: Tokens, the one that ended it included.
        prompt_tokens: Tokens of everything before.
        first_token_seconds: Time to the first token, None if there is none.
        per_token_seconds: Mean time of each further token, None if there is none.
        interrupted: Whether Ctrl-C ended it.
    """

    text: str
    tokens: list[int]
    prompt_tokens: int
    first_token_seconds: float | None
    per_token_seconds: float | None
    interrupted: bool

    def to_dict(self) -> dict[str, Any]:
        """All of it as plain data, but counts for the tokens."""
        return {
            "text": self.text,
            "interrupted": self.interrupted,
            "prompt_tokens": self.prompt_tokens,
            "output_tokens": len(self.tokens),
            "seconds": {"first_token": self.first_token_seconds, "per_output_token": self.per_token_seconds},
        }


@dataclass(frozen=True)
class Speaker:
    """A model attached to louiskv, with the cache that it uses.

    Attributes:
        model: Model.
        tokenizer: Its tokenizer.
        kv_cache: What `attach` yields.
        console: Where progress is shown.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    kv_cache: LouisKVCache
    console: Console

    def answer(self, ids: list[int], sampling: Sampling, write: Callable[[str], None]) -> Answer:
        """Generate after `ids`, of which the cache may hold the first ones; Ctrl-C ends it with what there is.

        Raises:
            HostMemoryError: The host has no room for the prompt and the output.
            DeviceMemoryError: The device has none.
        """
        needed = plan(
            self.model.config, self.kv_cache.method, len(ids) + sampling.max_new_tokens, dtype=self.model.dtype
        )
        needed.check_host_memory(self.model.device)
        streamer = Streamer(self.tokenizer, write)
        with Interruption() as interruption, self._watched(ids, streamer, interruption):
            started = time.perf_counter()
            with suppress(StoppedError):
                self._generate(ids, sampling, streamer, interruption)
        first, last = (streamer.times[0], streamer.times[-1]) if streamer.times else (None, None)
        count = len(streamer.times)
        return Answer(
            text=streamer.text,
            tokens=streamer.tokens,
            prompt_tokens=len(ids),
            first_token_seconds=None if first is None else first - started,
            per_token_seconds=None if first is None or last is None or count < 2 else (last - first) / (count - 1),
            interrupted=interruption.requested,
        )

    def _generate(self, ids: list[int], sampling: Sampling, streamer: Streamer, interruption: Interruption) -> None:
        torch.manual_seed(sampling.seed)
        inputs = torch.tensor([ids], device=self.model.device)
        captures = why_not(self.model, self.kv_cache) is None
        try:
            self.model.generate(  # type: ignore[operator]
                inputs,
                attention_mask=torch.ones_like(inputs),
                **passing(self.model, self.kv_cache),
                generation_config=_generation_config(self.model, self.tokenizer, sampling),
                stopping_criteria=StoppingCriteriaList([interruption]),
                **(decoding(self.kv_cache, streamer) if captures else {"streamer": streamer}),
            )
        except torch.OutOfMemoryError as error:
            raise DeviceMemoryError(
                f"{str(error).splitlines()[0]} Lower --budget or --prefill-chunk, or use --dtype bfloat16."
            ) from error

    @contextmanager
    def _watched(self, ids: list[int], streamer: Streamer, interruption: Interruption) -> Iterator[None]:
        """Show a bar from the prompt's first layer to the first token, and let Ctrl-C in between two layers."""
        columns = TextColumn("prompt"), BarColumn(), TaskProgressColumn(), TimeElapsedColumn()
        bar = Progress(*columns, console=self.console, transient=True, disable=not self.console.is_terminal)
        new_tokens = len(ids) - self.kv_cache.get_seq_length()
        task = bar.add_task("", total=new_tokens * len(self.kv_cache.managed))

        def note(_layer: int, tokens: int) -> None:
            bar.advance(task, tokens)
            interruption.check()

        streamer.on_first_token = bar.stop
        self.kv_cache.watch_prompt(note)
        try:
            bar.start()
            yield
        finally:
            bar.stop()
            self.kv_cache.watch_prompt(None)


@contextmanager
def speaker(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, method: Method, impl: str | None, console: Console
) -> Iterator[Speaker]:
    """The model attached to a method, its cache empty."""
    with attach(model, ready(model, method, console), impl=impl) as kv_cache:
        yield Speaker(model, tokenizer, kv_cache, console)


def _generation_config(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, sampling: Sampling
) -> GenerationConfig:
    """The model's own configuration of generation with what the user asked for."""
    config = copy.deepcopy(model.generation_config)
    assert config is not None
    sampled = sampling.temperature > 0
    config.update(
        max_new_tokens=sampling.max_new_tokens,
        max_length=None,
        do_sample=sampled,
        temperature=sampling.temperature if sampled else None,
        top_p=sampling.top_p if sampled else None,
        top_k=config.top_k if sampled else None,
        prefill_chunk_size=sampling.prefill_chunk,
        cache_implementation=None,
    )
    if config.pad_token_id is None:
        config.pad_token_id = tokenizer.pad_token_id or tokenizer.eos_token_id
    return config
