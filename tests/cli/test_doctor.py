"""`louiskv doctor`."""

import json

import pytest
import torch

from louiskv import ops
from louiskv.ops import OPS
from louiskv.ops.dispatch import Implementation
from tests.cli.conftest import Run


def test_every_implementation_is_listed_with_whether_it_can_run(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    refused = Implementation("stone", lambda: None, lambda like: f"{like.device.type} is no stone")
    monkeypatch.setitem(OPS, "kmeans", (*OPS["kmeans"], refused))
    found = json.loads(run("doctor", "--json").stdout)
    assert {name: list(candidates) for name, candidates in found["operations"].items()} == {
        name: [candidate.name for candidate in candidates] for name, candidates in ops.OPS.items()
    }
    assert found["operations"]["kmeans"]["torch"] == dict.fromkeys(found["devices"])
    assert found["operations"]["kmeans"]["stone"]["cpu"] == "cpu is no stone"
    shown = run("doctor").stdout
    assert "stone" in shown and "cpu is no stone" in shown
    assert all(len(line) <= 80 for line in shown.splitlines())


def test_versions_devices_and_memory(run: Run) -> None:
    found = json.loads(run("doctor", "--json").stdout)
    assert found["versions"]["torch"].startswith(torch.__version__.split("+")[0])
    assert {"python", "louiskv", "transformers", "typer", "rich", "gguf"} <= set(found["versions"])
    assert "pytest" not in found["versions"]
    assert "cpu" in found["devices"] and len(found["devices"]) == 1 + torch.cuda.device_count()
    assert found["available_host_bytes"] > 2**20
    assert "smollm2, 30 layers, 8192 positions" in run("doctor").stdout
