"""What every evaluation needs: a model, texts, results; and a record for each finished run."""

import random
import time
from collections.abc import Callable
from functools import reduce
from operator import add
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from louiskv.cache import LouisKVCache, managed_layers
from louiskv.contestants import Contestant
from louiskv.errors import SettingsError
from louiskv.evaluation.batches import ends_of
from louiskv.evaluation.grid import Fed
from louiskv.evaluation.texts import Haystack
from louiskv.provenance import origin, provenance
from louiskv.results import Results, key_of
from louiskv.telemetry import Tiers

Record = dict[str, Any]


class Evaluation:
    """A model, what it reads, and where results go.

    Attributes:
        results: What is known already.
        progress: Called with what runs, and how many runs are done, the one that goes on as a part.
        impl: Implementation of the operations; None takes the best that can run.
        managed: Index of each layer that a method manages.
        num_kv_heads: KV heads of each.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        haystack: Haystack,
        results: Results,
        progress: Callable[[str, float], None] = lambda *_: None,
        *,
        impl: str | None = None,
    ) -> None:
        self.model, self.tokenizer, self.haystack = model, tokenizer, haystack
        self.results, self.progress, self.impl = results, progress, impl
        self.done = 0
        self.ends = ends_of(model, tokenizer)
        self.origin, self.provenance = origin(model), provenance(model.device)
        config = model.config.get_text_config(decoder=True)
        self.managed = managed_layers(config)
        self.num_kv_heads: int = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
        self.positions: int | None = getattr(config, "max_position_embeddings", None)

    def identity(self, **decides: Any) -> Record:
        """All that decides over the results of a batch, beside the method."""
        known_as = {key: value for key, value in self.origin.items() if key != "model"}
        text = {"text": self.haystack.name, "text_hash": self.haystack.digest}
        return {**known_as, "impl": self.impl, **text, **decides}

    def known(self, identity: Record, contestants: list[Contestant]) -> dict[Contestant, Record | None]:
        """The record of each contestant, None where it is not there yet."""
        keys = {each: key_of({**identity, **each.identity}) for each in contestants}
        return {each: self.results.records.get(key) for each, key in keys.items()}

    def lacks(self, identity: Record, contestants: list[Contestant]) -> bool:
        """Whether any of these contestants has no record yet."""
        return None in self.known(identity, contestants).values()

    def check_positions(self, what: str, needed: int, way_out: str) -> None:
        """Raise `SettingsError` if the model has fewer positions than `what` needs."""
        if self.positions is not None and needed > self.positions:
            raise SettingsError(f"{what} needs {needed} positions, the model has {self.positions}. {way_out}")

    def ids(self, text: str) -> list[int]:
        """A text as it is."""
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"]) if text else []

    def texts(self, length: int, fed: Fed) -> Tensor:
        """[texts, length + steps] ids of prose.

        Raises:
            SettingsError: The model has too few positions, or the text is too short.
        """
        needed = length + fed.steps
        self.check_positions(f"A prompt of {length} with {fed.steps} steps", needed, "Give fewer.")
        seed = random.Random(f"{fed.seed} {length}")
        rows = [self.haystack.prose(needed, seed) for _ in range(fed.texts)]
        return torch.tensor(rows, device=self.model.device)

    def add(self, kind: str, identity: Record, contestant: Contestant, started: float, figures: Record) -> Record:
        """Write down a finished run that began at `started`."""
        self.results.add(
            {
                "kind": kind,
                "key": key_of({**identity, **contestant.identity}),
                **self.origin,
                **identity,
                **contestant.identity,
                **figures,
                "seconds": time.perf_counter() - started,
                "provenance": self.provenance,
            }
        )
        return self.results[key_of({**identity, **contestant.identity})]

    def tell(self, what: str, part: float = 0) -> None:
        """Tell what runs, and how much of it is done."""
        self.progress(what, self.done + part)


def held(tiers: list[Tiers]) -> Record:
    """What lay where, over all layers: bytes."""
    total = reduce(add, tiers)
    return {
        "resident_bytes": total.resident.bytes,
        "index_bytes": total.index.bytes,
        "host_bytes": total.host.bytes,
        "full_bytes": total.seen.bytes,
    }


def watch(kv_cache: LouisKVCache) -> Callable[[], Record]:
    """Watch a cache from now on; what this returns tells what it did since, by output token where that makes sense."""
    before = _fetched(kv_cache)

    def told() -> Record:
        report = kv_cache.report()
        return {
            "output_tokens": report.output_tokens,
            "fetched_per_token": (_fetched(kv_cache) - before) / max(1, report.output_tokens),
            "retrieval_rate": report.to_dict()["retrievals_per_step"],
            "ahead_rate": report.ahead_rate,
            **held([layer.tiers for layer in report.layers]),
        }

    return told


def _fetched(kv_cache: LouisKVCache) -> int:
    return sum(layer.state.traffic.fetched_bytes for layer in kv_cache.managed)
