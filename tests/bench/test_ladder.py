"""The ladders on a tiny model: their rungs, what each moves, and the rung that cannot run."""

from pathlib import Path

import pytest
import torch
from transformers import PreTrainedTokenizerBase

from louiskv import LouisKV, SettingsError
from louiskv.bench import ladder
from louiskv.bench.decode import Sweep, bench_decode
from louiskv.bench.runner import Bench
from louiskv.ops.dispatch import Implementation
from louiskv.results import Results
from tests.families import tiny

CPU = torch.device("cpu")
PARTS = ["full", "per token", "+ semantic trigger", "+ group selection"]


def test_each_rung_has_one_part_more() -> None:
    entries = ladder.parts(512, CPU)
    assert [entry.name for entry in entries] == [*PARTS, "+ fast kernels"]
    assert {entry.identity["group"] for entry in entries} == {"ladder"}
    every, semantic, ours, fast = (entry.method for entry in entries[1:])
    assert fast == ours and [entry.impl for entry in entries] == [*["torch"] * 4, None]
    assert isinstance(ours, LouisKV)
    parts = {name: str(value) for name, value in ours.parts().values().items()}
    assert every is not None
    assert semantic is not None
    first, second = (
        {name for name, value in each.values().items() if str(value) != parts[name]} for each in (every, semantic)
    )
    # Segments are what beside clusters is meant by None.
    assert first == {"trigger", "per_query_head", "output"}
    assert second == {"per_query_head", "output"}


def test_units_stand_beside_each_other_at_every_step_and_at_boundaries() -> None:
    entries = ladder.units(512, None)
    assert len({entry.name for entry in entries}) == len(entries) == 8
    assert [entry.identity["family"] for entry in entries] == ["every step"] * 4 + ["trigger"] * 4
    assert {entry.identity["group"] for entry in entries} == {"units"}
    assert {entry.identity["settings"]["budget"] for entry in entries} == {512}
    with pytest.raises(SettingsError, match="not a multiple of page_size=16"):
        ladder.units(500, None)


def test_kernels_that_cannot_run_are_refused_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    def kernels(refusal: str | None) -> None:
        found = (Implementation("triton", lambda: None, lambda _: refusal), Implementation("torch", lambda: None))
        monkeypatch.setattr(ladder, "OPS", {"kmeans": found, "score_units": found[1:]})

    kernels("needs a GPU")
    assert ladder.why_not_fast(CPU) == "triton: needs a GPU"
    assert [entry.name for entry in ladder.parts(512, CPU)] == PARTS
    kernels(None)
    assert ladder.why_not_fast(CPU) is None
    fast = ladder.parts(512, CPU)[-1]
    assert (fast.name, fast.method, fast.impl) == ("+ fast kernels", LouisKV(budget=512), None)
    monkeypatch.setattr(ladder, "OPS", {"kmeans": (Implementation("torch", lambda: None),)})
    assert ladder.why_not_fast(CPU) == "no operation has an implementation beside the reference (torch)"


def test_both_ladders_are_measured_and_kept(tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    model = tiny("llama", max_position_embeddings=1024)
    results = Results(tmp_path / "bench.jsonl")
    fields = ladder.parts(128, CPU), ladder.units(128, None)
    records = list(bench_decode(Bench(model, tokenizer, results), Sweep((600,), (1,), 12), *fields))
    assert [record["group"] for record in records] == ["ladder"] * 5 + ["units"] * 8
    every, semantic, ours = records[1:4]
    # Each query head for itself, of which there are four for a KV head: more bytes moved, and more held.
    assert semantic["retrieval_rate"] == ours["retrieval_rate"] <= every["retrieval_rate"] == 1
    assert semantic["fetched_per_token"] > 1.5 * ours["fetched_per_token"] > 0
    assert every["fetched_per_token"] >= semantic["fetched_per_token"]
    assert semantic["host_bytes"] == 4 * ours["host_bytes"]
    assert len({record["full_bytes"] for record in records}) == 1
    assert list(bench_decode(Bench(model, tokenizer, results), Sweep((600,), (1,), 12), *fields)) == records
