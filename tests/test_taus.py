"""Calibrated taus: saved, found by LouisKV, and refused for other models."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from louiskv import LouisKV, NotCalibratedError, SettingsError, attach
from louiskv.cache import passing
from louiskv.measured import ModelIdentity
from louiskv.taus import LayerTaus
from tests.families import prompt, tiny


def taus_of(seed: int = 0) -> LayerTaus:
    model = ModelIdentity.of(tiny("llama", seed=seed))
    return LayerTaus(model, [None, -1.0, 1.0, 0.5], 0.25, {"rate": 0.5}, {"rate": 0.4}, [], {}, {"samples": 2})


def test_each_layer_retrieves_by_its_own_tau(tmp_path: Path) -> None:
    taus_of().write(tmp_path / "tau.json")
    method = LouisKV(calibration=str(tmp_path / "tau.json"), budget=96, dense_layers=1)
    model, inputs = tiny("llama"), prompt(60)
    with attach(model, method) as kv_cache, torch.inference_mode():
        model(**inputs, **passing(model, kv_cache))
        for token in range(10):
            model(torch.tensor([[token]]), **passing(model, kv_cache))
    assert kv_cache.method == replace(method, tau=(0.25, -1.0, 1.0, 0.5), calibration="")
    rates = [layer.retrieval_rate for layer in kv_cache.report().layers]
    # Under -1 no cosine falls: only the first step retrieves.
    assert rates[1:3] == [pytest.approx(0.1), 1.0]


def test_files_of_others_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "tau.json"
    method = LouisKV(calibration=str(path))
    with pytest.raises(SettingsError, match=r"tau\.json cannot be read"):
        method.for_model(tiny("llama"))
    for content in ("{}", "[", '{"model": 3}'):
        path.write_text(content)
        with pytest.raises(SettingsError, match="louiskv calibrate"):
            method.for_model(tiny("llama"))
    replace(taus_of(), global_tau=2.0).write(path)
    with pytest.raises(SettingsError, match="holds no calibrated taus"):
        LayerTaus.load(path)
    taus_of(seed=1).write(path)
    with pytest.raises(SettingsError, match="another model"):
        method.for_model(tiny("llama"))


def test_without_a_model_there_is_no_layer() -> None:
    with pytest.raises(NotCalibratedError, match="attach it to a model"):
        LouisKV(calibration="tau.json").layer(3)
