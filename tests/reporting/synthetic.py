"""Small records of every kind, as the commands write them, with figures out of a hat."""

import random
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from louiskv.measured import ModelIdentity
from louiskv.methods import METHODS
from louiskv.provenance import digest
from louiskv.results import Results
from louiskv.taus import LayerTaus

Record = dict[str, Any]

COMMANDS = {
    "decode": "bench decode",
    "prefill": "bench prefill",
    "operation": "bench ops",
    "serve": "bench serve",
    "probe": "probe",
}
LAYERS, HEADS, STEPS, PROMPT = 4, 2, 24, 40
MODEL = ModelIdentity("tiny/model", "shapes", [0.5, 0.25])
PROVENANCE = {
    "louiskv": "0.1.0",
    "python": "3.11.0",
    "torch": "2.13.0",
    "transformers": "5.24.0",
    "processor": "some processor",
    "threads": 1,
    "device": "cpu",
}


class Hat:
    """Makes records; the same seed makes the same."""

    def __init__(self, seed: int = 0, dtype: str = "float32") -> None:
        self.random, self.dtype, self.made = random.Random(seed), dtype, 0

    def record(self, kind: str, method: str, budget: int | None, figures: Record, **more: Any) -> Record:
        self.made += 1
        command = COMMANDS.get(kind, "eval")
        return {
            "kind": kind,
            "key": f"{self.dtype} {kind} {self.made}",
            "model": MODEL.name,
            "model_hash": digest(MODEL),
            "dtype": self.dtype,
            "method": method,
            "budget": budget,
            "class": method,
            "settings": {},
            "group": None,
            "family": None,
            **figures,
            "seconds": 1.0,
            "provenance": {"command": f"louiskv {command} --output {kind}.jsonl", "commit": "0123abcd", **PROVENANCE},
            **more,
        }

    def number(self, low: float = 0.0, high: float = 1.0) -> float:
        return self.random.uniform(low, high)

    def rows(self, count: int, width: int) -> list[list[float]]:
        return [[self.number() for _ in range(width)] for _ in range(count)]

    def traffic(self, method: str, budget: int | None) -> Record:
        moves = budget is not None and method not in ("snapkv", "h2o", "streaming_llm", "raas", "keepkv")
        return {
            "output_tokens": STEPS,
            "fetched_per_token": self.number(1e3, 1e6) if moves else 0.0,
            "retrieval_rate": self.number() if moves else 0.0,
            "ahead_rate": self.number() if method == "freekv" else None,
            "resident_bytes": (budget or 4096) * 100,
            "index_bytes": 500 if moves else 0,
            "host_bytes": 409600 if moves else 0,
            "full_bytes": 409600,
        }

    def task(self, method: str, budget: int | None, task: str = "passkey", context: int = 512, **more: Any) -> Record:
        figures = {
            "task": task,
            "task_settings": task,
            "text_hash": "text",
            "context": context,
            "seed": 0,
            "samples": [0, 1, 2, 3],
            "scores": [float(self.number() < 0.5) for _ in range(4)],
            "agreement": [self.number() for _ in range(4)],
            **self.traffic(method, budget),
        }
        return self.record("task", method, budget, figures, **more)

    def fidelity(self, method: str, budget: int | None, prompt: int = 512, **more: Any) -> Record:
        lossless = method in ("full", "full_offloaded")
        size = 0.0 if lossless else self.number(0.01, 1) * 100 / (budget or 100)
        figures = {
            "text_hash": "text",
            "prompt": prompt,
            "steps": STEPS,
            "texts": 1,
            "seed": 0,
            "kl": size,
            "top1": 1 - size / 4,
            "nll": size / 2,
            "bin": 64,
            "curves": {name: [size * self.number(0.5, 2) for _ in range(16)] for name in ("kl", "top1", "nll")},
            **self.traffic(method, budget),
        }
        return self.record("fidelity", method, budget, figures, **more)

    def probe(self, method: str, budget: int | None, prompt: int = PROMPT) -> Record:
        traffic = self.traffic(method, budget)
        fires = [self.random.random() < 0.3 for _ in range(STEPS)] if traffic["retrieval_rate"] else [False] * STEPS
        overlap: list[list[float | None]] = [list(row) for row in self.rows(LAYERS, HEADS)]
        overlap[0] = [None] * HEADS
        figures = {
            "prompt": prompt,
            "layers": list(range(LAYERS)),
            "recall": self.rows(LAYERS, HEADS),
            "error": self.rows(LAYERS, HEADS),
            "overlap": overlap,
            "cosine": [[sorted(self.number() for _ in range(5)) for _ in range(HEADS)] for _ in range(LAYERS)],
            "quantiles": [0.05, 0.25, 0.5, 0.75, 0.95],
            "bin": 16,
            "curves": {name: [self.number(), self.number()] for name in ("recall", "error")},
            "retrieved": [[float(fire) for fire in fires] for _ in range(LAYERS)],
            "attended": {
                "layer": 2,
                "head": 0,
                "bin": 4,
                "share": self.rows(STEPS, (prompt + STEPS) // 4),
                "boundaries": [step for step, fire in enumerate(fires) if fire],
            },
            **traffic,
        }
        return self.record("probe", method, budget, figures)

    def decode(self, method: str, budget: int | None, context: int, batch: int = 1, **more: Any) -> Record:
        spent = {"selection": 1.0, "fetch": 2.0, "attention": 0.5, "ahead": 0.0}
        time = self.number(10, 20) + (context * batch * 0.004 if budget is None else 2)
        figures = {
            "run": "2026",
            "impl": None,
            "context": context,
            "batch": batch,
            "num_real": min(context, 2048),
            "steps": STEPS,
            "ms_per_token": time,
            "ms_quartiles": [time * 0.9, time * 1.2],
            "tokens_per_second": batch * 1000 / time,
            "device_bytes": (budget or context) * 100,
            "peak_device_bytes": (budget or context) * 110,
            "retrieval_share": 0.1,
            "hit_rate": None if budget is None else 0.8,
            "phases": {"model": time} if method == "sdpa" else {"model": time - 3.5, **spent},
            "interleaved": True,
            **self.traffic(method, budget),
        }
        return self.record("decode", method, budget, figures, **more)

    def prefill(self, method: str, budget: int | None, context: int) -> Record:
        time = context * self.number(0.001, 0.002)
        figures = {
            "run": "2026",
            "impl": None,
            "context": context,
            "rounds": 3,
            "first_token_seconds": time,
            "all_seconds": [0.9 * time, time, 1.2 * time],
            "clustering_seconds": 0.1,
        }
        return self.record("prefill", method, budget, figures)

    def serve(self, method: str, budget: int | None, clients: int | None) -> Record:
        first = self.number(0.5, 2) * (clients or 1)
        asked = {"prompts": [128, 1024], "output": 64, "requests": 16, "seed": 0, "timeout": 600.0, "text_hash": "text"}
        room = {"rows": 8, "prefill_chunk": 512, "queue": 64, "host_memory": None, "device_memory": None}
        figures = {
            "run": "2026",
            "impl": None,
            "clients": clients,
            "rate": 0.5 if clients is None else None,
            **asked,
            **room,
            "answered": 16,
            "failed": {},
            "prompt_tokens": 9216,
            "output_tokens": 1024,
            "tokens_per_second": self.number(10, 20),
            "all_tokens_per_second": self.number(100, 200),
            "processor_seconds": self.number(50, 60),
            "first_token_seconds": self.spread(first),
            "between_seconds": self.spread(0.05),
            "answer_seconds": self.spread(first + 4),
            "first_token_by_prompt": {"128": self.spread(first / 2), "1024": self.spread(2 * first)},
            "slowest_over_median": 1.5,
            "most_at_once": clients or 2,
            "peak_resident_bytes": (budget or 1024) * 100,
            "peak_index_bytes": 500,
            "peak_device_bytes": (budget or 1024) * 100 + 500,
            "peak_host_bytes": 409600,
            "fetched_bytes": 0 if budget is None else 10**6,
            "retrieval_rate": 0.0 if budget is None else 0.4,
        }
        return self.record("serve", method, budget, figures)

    def spread(self, median: float) -> Record:
        return {"p50": median, "p90": 1.2 * median, "p99": 1.4 * median, "most": 1.5 * median}

    def operation(self, op: str, impl: str, share: float | None, context: int = 4096) -> Record:
        time = self.number(10, 200)
        figures = {
            "class": op,
            "run": "2026",
            "impl": impl,
            "context": context,
            "batch": 1,
            "microseconds": time,
            "quartiles": [0.9 * time, 1.1 * time],
            "timed_by": "clock",
            "faster": 2.0,
            "bytes_per_second": 1e9,
            "flops_per_second": 0.0,
            "limit": "call" if share is None else "memory",
            "share": share,
        }
        return self.record("operation", op, 512, figures)


def everything(
    methods: Iterable[str] = ("full", "louiskv", "snapkv"), budgets: Iterable[int] = (128,), seed: int = 0
) -> Iterator[Record]:
    """Records of every kind for each method at each budget."""
    hat = Hat(seed)
    field = [
        (name, budget)
        for name in methods
        for budget in (budgets if "budget" in {setting.name for setting in METHODS[name].settings()} else [None])
    ]
    for name, budget in field:
        for task in ("passkey", "ledger"):
            yield from (hat.task(name, budget, task, context) for context in (512, 1024))
        yield hat.fidelity(name, budget)
        if budget:
            yield hat.probe(name, budget)
    for name, budget in [("sdpa", None), *field]:
        yield from (hat.decode(name, budget, context, batch) for context in (1024, 4096) for batch in (1, 4))
        yield from (hat.prefill(name, budget, context) for context in (1024, 4096))
    for group, families in {
        "trigger": ("every", "cosine"),
        "units": ("clusters", "pages, mean"),
        "plus": ("plus", "anchor"),
    }.items():
        for family in families:
            for label in ("4", "8", "16"):
                of: dict[str, Any] = {"group": group, "family": family}
                yield hat.task(f"{family} {label}", 128, **of)
                yield hat.fidelity(f"{family} {label}", 128, **of)
    yield from (hat.decode(name, 512, 4096, group="ladder", family=name) for name in ("at every step", "reuse"))
    yield hat.decode("clusters 16", 512, 4096, group="units", family="clusters")
    for name, budget in field:
        yield from (hat.serve(name, budget, clients) for clients in (1, 4, None))
    yield from (hat.operation("agree", impl, share) for impl, share in (("cpu", 0.5), ("torch", None)))


def taus() -> LayerTaus:
    """A calibration for an error."""
    values = [0.1, 0.4, 0.9]
    return LayerTaus(
        model=MODEL,
        tau=[None, 0.6, 0.7, 0.8],
        global_tau=0.7,
        target={"error": 0.1},
        achieved={"rate": 0.3, "error": 0.1, "global_rate": 0.35, "global_error": 0.1},
        curve=[{"samples": float(n), "tau_error": 0.1 / n, "rate": 0.3, "error": 0.1} for n in (1, 2, 4)],
        by_tau={"tau": [-1.0, 0.5, 1.0], "layers": [1, 2, 3], "rates": [values] * 3, "errors": [values[::-1]] * 3},
        settings={"samples": 4, "held_out": 1, "num_prompt": 64, "steps": 16},
    )


def write(folder: Path, records: Iterable[Record]) -> Path:
    """A folder of results: a file for each kind, and a calibration."""
    for record in records:
        Results(folder / f"{record['kind']}.jsonl").add(record)
    taus().write(folder / "tau.json")
    return folder
