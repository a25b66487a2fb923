"""A model that is split over ranks: tokens, retrievals and figures are those of one process."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedModel

from louiskv import RazorAttention, score_heads
from tests.ranks.scenarios import LOUISKV, METHODS, MODELS, RANKS, beams, conversation, generated

Results = dict[str, Any]


@pytest.fixture(scope="module")
def models() -> dict[str, PreTrainedModel]:
    """Each model in one process."""
    return {name: build() for name, build in MODELS.items()}


@pytest.fixture(scope="module")
def folder(models: dict[str, PreTrainedModel], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The models in files, and the head scores of one of them."""
    place = tmp_path_factory.mktemp("split")
    for name, model in models.items():
        model.save_pretrained(place / name)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LOUISKV_CACHE", str(place / "cache"))
        score_heads(models["llama"], block=40)
    return place


@pytest.fixture(scope="module")
def ranks(folder: Path) -> list[Results]:
    """What the ranks have written down, all of it done in one run."""
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(RANKS)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONFAULTHANDLER": "1"}
    logs = ["--log-dir", str(folder / "logs"), "--redirects", "3"]
    run = subprocess.run(
        [*torchrun, *logs, "-m", "tests.ranks", str(folder)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    if run.returncode:
        # What torchrun says of a rank that failed is long, and does not say why.
        ends = {path: path.read_text().splitlines()[-25:] for path in sorted(folder.rglob("stderr.log"))}
        said = [f"rank {path.parent.name}: {line:.200}" for path, lines in ends.items() for line in lines]
        pytest.fail("\n".join(["a rank failed", *(said or run.stderr.splitlines())]), pytrace=False)
    return [json.loads((folder / f"rank{rank}.json").read_text()) for rank in range(RANKS)]


@pytest.mark.parametrize("name", METHODS)
def test_every_method_does_what_it_does_in_one_process(
    name: str, models: dict[str, PreTrainedModel], ranks: list[Results]
) -> None:
    alone = conversation(models["llama"], METHODS[name])
    for rank in ranks:
        assert rank["methods"][name]["tokens"] == alone["tokens"]
        assert rank["methods"][name]["report"] == alone["report"]


def test_each_rank_holds_kv_heads_of_its_own(models: dict[str, PreTrainedModel], ranks: list[Results]) -> None:
    alone = conversation(models["llama"], METHODS["freekv"])["fired"]
    parts = [rank["methods"]["freekv"]["fired"] for rank in ranks]
    joint = [
        [[[*a, *b] for a, b in zip(*steps, strict=True)] for steps in zip(*layers, strict=True)]
        for layers in zip(*parts, strict=True)
    ]
    assert joint == alone


def test_a_trigger_over_all_heads_is_one_for_all_ranks(
    models: dict[str, PreTrainedModel], ranks: list[Results]
) -> None:
    alone = conversation(models["llama"], LOUISKV)
    one, other = [_by_sequence(rank["methods"]["louiskv"]["fired"]) for rank in ranks]
    assert one == other == _by_sequence(alone["fired"])
    assert 0 < sum(map(sum, one)) < sum(map(len, one)), "it must fire at some steps and not at others"
    # If each rank listened to its own heads alone, they would not fire together, nor say the same.
    apart = [_by_sequence(rank["each by itself"]["fired"]) for rank in ranks]
    assert apart[0] != apart[1]
    assert all(rank["each by itself"]["tokens"] != alone["tokens"] for rank in ranks)


def _by_sequence(fired: list[Any]) -> list[list[bool]]:
    """By layer, for each step and sequence whether all KV heads have retrieved; they must do so together."""
    flat = [[heads for step in layer for heads in step] for layer in fired]
    assert all(len(set(heads)) == 1 for layer in flat for heads in layer)
    return [[heads[0] for heads in layer] for layer in flat]


def test_copies_beams_and_louiskv_generate(models: dict[str, PreTrainedModel], ranks: list[Results]) -> None:
    llama = models["llama"]
    alone = conversation(llama, LOUISKV)["tokens"], beams(llama), generated(llama)
    for rank in ranks:
        assert (rank["copied"]["tokens"], rank["beams"], rank["generated"]) == alone


@pytest.mark.parametrize(("name", "parts"), [("qwen3", 2), ("gemma3_text", 2), ("granite_swa", 2), ("phi3", 1)])
def test_families_whether_their_heads_are_split_or_not(
    name: str, parts: int, models: dict[str, PreTrainedModel], ranks: list[Results]
) -> None:
    alone = conversation(models[name], LOUISKV)
    for rank in ranks:
        assert rank["parts"][name] == parts
        assert rank["models"][name]["tokens"] == alone["tokens"]
        held = rank["models"][name]["report"]["device_bytes"]
        assert held == alone["report"]["device_bytes"] * RANKS // parts


def test_heads_are_known_and_measured_alike(
    models: dict[str, PreTrainedModel], folder: Path, ranks: list[Results], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LOUISKV_CACHE", str(folder / "cache"))
    scores = score_heads(models["llama"], block=40)
    heads = RazorAttention().for_model(models["llama"]).kv_heads
    assert heads is not None
    for rank in ranks:
        assert rank["measured"]["known"] == rank["measured"]["found"] == [list(layer) for layer in heads]
        for name in ("echo", "induction"):
            for layer, own in zip(rank["measured"][name], getattr(scores, name), strict=True):
                assert layer == pytest.approx(own, rel=1e-4)


def test_kv_heads_that_ranks_cannot_share_are_refused(ranks: list[Results]) -> None:
    for rank in ranks:
        assert "3 KV heads in a layer, which 2 ranks cannot share" in rank["refusal"]
        assert "Use 1 or 3 ranks" in rank["refusal"]
