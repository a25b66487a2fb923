"""One of the ranks: does everything with models that are split, and writes down what came of it."""

import json
import os
import sys
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.distributed import DistributedConfig

from louiskv import NotCalibratedError, RazorAttention, UnsupportedModelError, attach, score_heads
from louiskv.shard import Shard
from tests.ranks.scenarios import LOUISKV, METHODS, MODELS, RANKS, beams, conversation, generated


def load(folder: Path) -> PreTrainedModel:
    """This rank's part of a model."""
    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
        folder,
        dtype=torch.float32,
        attn_implementation="eager",
        distributed_config=DistributedConfig(tp_size=RANKS),
    )
    return model.eval()


def refusal(model: PreTrainedModel) -> str:
    """Why a model cannot be attached."""
    try:
        with attach(model, LOUISKV):
            return ""
    except UnsupportedModelError as error:
        return str(error)


def measured(model: PreTrainedModel, folder: Path) -> dict[str, Any]:
    """The retrieval heads that one process has found, and what the ranks measure themselves."""
    os.environ["LOUISKV_CACHE"] = str(folder / "cache")
    known = RazorAttention().for_model(model).kv_heads
    os.environ["LOUISKV_CACHE"] = str(folder / "own")
    try:
        RazorAttention().for_model(model)
    except NotCalibratedError:
        scores = score_heads(model, block=40)
    found = RazorAttention().for_model(model).kv_heads
    return {"known": known, "found": found, "echo": scores.echo, "induction": scores.induction}


def main(folder: Path) -> None:
    """Do it all, and leave the other ranks."""
    llama = load(folder / "llama")
    shard = Shard.of(llama)
    results: dict[str, Any] = {"methods": {name: conversation(llama, method) for name, method in METHODS.items()}}
    with patch.object(Shard, "mean", lambda self, figures: figures):
        results["each by itself"] = conversation(llama, LOUISKV)
    results["copied"] = conversation(llama, LOUISKV, copied=True)
    results["beams"], results["generated"] = beams(llama), generated(llama)
    results["measured"] = measured(llama, folder)
    others = {name: load(folder / name) for name in MODELS if name != "llama"}
    results["refusal"] = refusal(others.pop("three_heads"))
    results["parts"] = {name: Shard.of(model).num_parts for name, model in others.items()}
    results["models"] = {name: conversation(model, LOUISKV) for name, model in others.items()}
    (folder / f"rank{shard.rank}.json").write_text(json.dumps(results))
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
