"""`louiskv` under torchrun: one answer, one message."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from louiskv import ModelLoadError, UnsupportedModelError, models
from louiskv.cli import ranks
from louiskv.cli.failures import UsageError
from louiskv.ranks import Ranks
from tests.cli.conftest import Loaded
from tests.families import tiny


@pytest.fixture(scope="module")
def small(loaded: Loaded, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random model with a tokenizer, whose KV heads two ranks can share."""
    folder = tmp_path_factory.mktemp("small")
    _, tokenizer = loaded
    model = tiny("llama", num_hidden_layers=2, vocab_size=len(tokenizer), eos_token_id=tokenizer.eos_token_id)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def two_ranks(failing: int, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run `louiskv` on two ranks, of which one may fail."""
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command = [*torchrun, "-m", "tests.cli.rank", str(failing), *arguments]
    return subprocess.run(
        command, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=200
    )


ASKED = ("generate", "Who came?", "--raw", "--max-new-tokens", "6", "--method", "full", "--dtype", "float32", "--json")


def test_two_ranks_give_one_answer(small: Path) -> None:
    run = two_ranks(-1, *ASKED, "--model", str(small))
    assert run.returncode == 0, run.stderr
    answer = json.loads(run.stdout)
    assert answer["output_tokens"] == 6
    assert answer["report"]["ranks"] == 2
    model, tokenizer = models.load(str(small), device="cpu", dtype=torch.float32)
    ids = tokenizer("Who came?", return_tensors="pt")
    alone = model.generate(**ids, max_new_tokens=6, do_sample=False)  # type: ignore[operator]
    assert answer["text"] == tokenizer.decode(alone[0, ids["input_ids"].shape[1] :], skip_special_tokens=True)


def test_a_rank_that_fails_alone_ends_all_with_one_message(small: Path) -> None:
    run = two_ranks(1, *ASKED, "--model", str(small))
    assert run.returncode != 0 and not run.stdout
    assert run.stderr.count("error: ") == 1
    assert "rank 1: error: There is no model at /nowhere/model" in run.stderr


@pytest.fixture
def second_of_two(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if torchrun had started this process beside another."""
    for name, value in (("RANK", "1"), ("WORLD_SIZE", "2"), ("LOCAL_RANK", "1")):
        monkeypatch.setenv(name, value)


@pytest.mark.usefixtures("second_of_two")
def test_what_does_not_split_a_model_is_for_one_process() -> None:
    ranks.check_command("generate")
    with pytest.raises(UsageError, match="louiskv chat runs in one process, but torchrun has started 2"):
        ranks.check_command("chat")


@pytest.mark.usefixtures("second_of_two")
def test_other_ranks_are_silent(capsys: pytest.CaptureFixture[str]) -> None:
    with ranks.as_one():
        print("heard")
        print("heard", file=sys.stderr)
    assert capsys.readouterr() == ("", "")


def test_one_process_speaks_and_tells(capsys: pytest.CaptureFixture[str]) -> None:
    ranks.check_command("chat")
    with ranks.as_one():
        print("heard")
    ranks.tell("error: told")
    assert capsys.readouterr() == ("heard\n", "error: told\n")


def test_a_model_that_cannot_be_split_is_refused_before_it_is_read(small: Path, tmp_path: Path) -> None:
    two, three = Ranks(rank=0, num_ranks=2, local_rank=0), Ranks(rank=0, num_ranks=3, local_rank=0)
    with pytest.raises(UnsupportedModelError, match="2 KV heads in a layer, which 3 ranks cannot share evenly"):
        models.load(str(small), ranks=three)
    tiny("stablelm").save_pretrained(tmp_path)
    with pytest.raises(UnsupportedModelError, match=r"no plan of how to split .*stablelm"):
        models.load(str(tmp_path), ranks=two)


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is taken where there is one")
def test_each_rank_takes_the_device_of_its_number(small: Path) -> None:
    with pytest.raises(ModelLoadError, match=r"cannot be put on 'cuda:0': each rank takes the CPU"):
        models.load(str(small), device="cuda:0", ranks=Ranks(rank=0, num_ranks=2, local_rank=0))
