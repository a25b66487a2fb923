"""`louiskv plan`."""

import json
import re

import pytest
import torch

from louiskv import METHODS, LouisKV, models
from louiskv.plan import plan
from tests.cli.conftest import Run


@pytest.fixture(autouse=True)
def nothing_is_loaded(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(models, "load", lambda *args, **kwargs: pytest.fail("loaded"))


@pytest.mark.parametrize("name", METHODS)
def test_the_table_names_every_tier(run: Run, name: str) -> None:
    result = run("plan", "--method", name, "--context", "8000")
    assert result.exit_code == 0 and result.stderr == ""
    assert f"{METHODS[name].__name__} on smollm2: 1 x 8000 tokens in float32" in result.stdout
    for tier in ("on the device", "index", "on the host", "one retrieval", "full attention", "available"):
        assert tier in result.stdout
    assert all(len(line) <= 80 for line in result.stdout.splitlines())


def test_json_holds_the_figures_of_the_plan(run: Run) -> None:
    flags = "--context", "3000", "--batch", "2", "--budget", "300", "--dtype", "bfloat16"
    told = json.loads(run("plan", "--json", *flags).stdout)
    expected = plan(models.load_config(), LouisKV(budget=300), 3000, batch_size=2, dtype=torch.bfloat16).to_dict()
    assert {key: told[key] for key in expected} == expected
    assert told["fits"] is True and told["dtype"] == "bfloat16" and told["available_host_bytes"] > 0


@pytest.mark.parametrize("flags", [[], ["--json"]])
def test_what_does_not_fit_fails_after_the_figures(run: Run, flags: list[str]) -> None:
    result = run("plan", "--context", "1000000000", *flags)
    assert result.exit_code == 1
    assert re.search(r"error: LouisKV needs .* of host memory for 1 x 1000000000 tokens", result.stderr)
    assert result.stdout
    if flags:
        assert json.loads(result.stdout)["fits"] is False


def test_a_gpu_that_is_not_here_can_be_planned_for(run: Run) -> None:
    assert json.loads(run("plan", "--device", "cuda:3", "--json").stdout)["device"] == "cuda:3"


@pytest.mark.parametrize(
    "flags, code, message",
    [
        (["--context", "0"], 2, "context=0 is not allowed"),
        (["--batch", "-1"], 2, "batch_size=-1 is not allowed"),
        (["--device", "moon"], 2, "--device moon is not a device"),
        (["--budget", "10"], 2, "budget=10 leaves no room"),
        (["--model", "/nope"], 1, "There is no model at /nope"),
    ],
)
def test_bad_input_is_refused(run: Run, flags: list[str], code: int, message: str) -> None:
    result = run("plan", *flags)
    assert result.exit_code == code and not result.stdout
    assert result.stderr.startswith("error: ") and message in result.stderr
