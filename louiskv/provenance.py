"""Where figures come from: command, commit, versions, machine."""

import hashlib
import platform
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import PreTrainedModel

import louiskv
from louiskv.measured import ModelIdentity


def provenance(device: torch.device) -> dict[str, Any]:
    """Command, commit (if run from a checkout), versions and machine, as plain data."""
    return {
        "command": shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        "commit": _commit(),
        "louiskv": louiskv.__version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "processor": _processor(),
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
    }


def origin(model: PreTrainedModel) -> dict[str, str]:
    """The model of a result: its name, a digest of its parameters, their type."""
    known = ModelIdentity.of(model)
    return {"model": known.name, "model_hash": digest(known), "dtype": str(model.dtype).removeprefix("torch.")}


def digest(model: ModelIdentity) -> str:
    """A short name of a model's parameters."""
    return hashlib.sha256(f"{model.shapes} {model.sample}".encode()).hexdigest()[:16]


def _commit() -> str | None:
    try:
        # Where it is installed, the repository around it is somebody else's.
        _git("ls-files", "--error-unmatch", Path(__file__).name)
        return _git("describe", "--always", "--dirty", "--abbrev=12", "--exclude=*")
    except (OSError, subprocess.CalledProcessError):
        return None


def _git(*arguments: str) -> str:
    folder = Path(__file__).parent
    return subprocess.run(["git", *arguments], cwd=folder, capture_output=True, text=True, check=True).stdout.strip()


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())
