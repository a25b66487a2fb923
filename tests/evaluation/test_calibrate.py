"""Calibration of tau: the target is reached on what was sampled, and told for what was held out."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import louiskv.evaluation.calibrate as measuring
from louiskv import LouisKV, LouisKVPlus, SettingsError, attach
from louiskv.cache import passing
from louiskv.evaluation.calibrate import GRID, Target, calibrate
from louiskv.evaluation.probe import Probe, probe
from louiskv.evaluation.replay import take_in
from louiskv.taus import LayerTaus
from tests.families import prompt, tiny

LENGTH, STEPS = 30, 16
TAUS = (-1.0, *GRID)
# Attends to all there is, so that a model attached to it has the queries of full attention.
EVERYTHING = LouisKV(budget=400, dense_layers=1)
SMALL = LouisKV(budget=24, sink=2, window=8, unit_size=4, max_segment=4, dense_layers=1)


def texts(samples: int = 8) -> torch.Tensor:
    return prompt(LENGTH + STEPS, samples, seed=5)["input_ids"]


def test_a_rate_is_reached_by_each_layer_and_by_one_tau_for_all() -> None:
    model, samples = tiny("llama"), texts()
    taus = calibrate(model, samples[2:], samples[:2], LENGTH, Target(rate=0.3), EVERYTHING, batch_size=4)
    used = samples[2:]
    taken = take_in(model, used[:, :LENGTH], torch.ones(6, LENGTH, dtype=torch.bool))
    seen = probe(model, taken, used[:, LENGTH:], [])
    cosine = seen.cosine[1:, 1:].unflatten(2, (6, -1)).mean(3)
    assert taus.tau[0] is None
    for layer in range(1, 4):
        under = float((cosine[:, layer - 1] < taus.tau[layer]).float().mean())
        assert under == pytest.approx(0.3, abs=0.02)
    assert float((cosine < taus.global_tau).float().mean()) == pytest.approx(0.3, abs=0.01)
    rates = torch.stack([(cosine < tau).float().mean((0, 2)) for tau in TAUS], dim=1)
    torch.testing.assert_close(torch.tensor(taus.by_tau["rates"]), rates)
    assert taus.by_tau["layers"] == [1, 2, 3] and taus.by_tau["tau"] == list(TAUS)
    assert taus.curve[-1]["tau_error"] == 0 and [point["samples"] for point in taus.curve] == [1, 2, 4, 6]


def test_what_is_told_of_held_out_texts_is_what_a_model_does_there(tmp_path: Path) -> None:
    model, samples = tiny("llama"), texts()
    taus = calibrate(model, samples[2:], samples[:2], LENGTH, Target(rate=0.5), EVERYTHING)
    taus.write(tmp_path / "tau.json")
    assert LayerTaus.load(tmp_path / "tau.json") == taus
    method = LouisKV(budget=400, dense_layers=1, calibration=str(tmp_path / "tau.json"))
    with attach(model, method) as kv_cache, torch.inference_mode():
        model(samples[:2, :LENGTH], **passing(model, kv_cache))
        for token in samples[:2, LENGTH:].split(1, dim=1):
            model(token, **passing(model, kv_cache))
    rates = [layer.retrieval_rate for layer in kv_cache.report().layers[1:]]
    assert taus.achieved["rate"] == pytest.approx(sum(rates) / len(rates), abs=1e-6)
    assert taus.achieved["error"] < 1e-4


def test_an_error_is_reached_where_it_can_be() -> None:
    model, samples = tiny("llama"), texts(4)
    strict, loose, middle = (
        calibrate(model, samples[1:], samples[:1], LENGTH, Target(error=error), SMALL) for error in (0.0, 1.0, 0.45)
    )
    assert strict.tau == [None, 1.0, 1.0, 1.0] and strict.global_tau == 1.0
    assert loose.tau == [None, -1.0, -1.0, -1.0] and loose.global_tau == -1.0
    assert strict.achieved["rate"] == 1 > loose.achieved["rate"] > 0
    assert strict.achieved["error"] < loose.achieved["error"]
    assert all(each in TAUS for each in middle.tau[1:])
    assert {"samples", "tau_error", "rate", "error"} == set(middle.curve[0])
    errors = torch.tensor(middle.by_tau["errors"], dtype=torch.float64)
    for layer, tau in zip(middle.by_tau["layers"], middle.tau[1:], strict=True):
        reached = [each for each, error in zip(TAUS, errors[layer - 1].tolist(), strict=True) if error <= 0.45]
        assert tau == min(reached, default=1.0)


def test_the_cosine_of_two_equal_queries_may_be_rounded_up(monkeypatch: pytest.MonkeyPatch) -> None:
    def rounded(*args: Any, **options: Any) -> Probe:
        seen = probe(*args, **options)
        return replace(seen, cosine=torch.full_like(seen.cosine, 1 + 1e-6))

    monkeypatch.setattr(measuring, "probe", rounded)
    taus = calibrate(tiny("llama"), texts(1), texts(1), LENGTH, Target(rate=1.0), SMALL)
    assert taus.tau[1:] == [1.0] * 3 and taus.global_tau == 1.0


def test_progress_counts_to_the_end() -> None:
    seen: list[tuple[int, int]] = []
    model, samples = tiny("llama"), texts(5)
    parts = samples[1:], samples[:1]
    calibrate(model, *parts, LENGTH, Target(rate=0.3), SMALL, batch_size=2, progress=lambda *at: seen.append(at))
    assert [done for done, _ in seen] == list(range(1, 3 * STEPS + 1))
    assert {total for _, total in seen} == {3 * STEPS}


@pytest.mark.parametrize(("trigger", "least"), [("anchor", -1.0), ("cosine", -1.0), ("coverage", 0.0)])
def test_taus_of_other_triggers_are_found_by_trying(trigger: str, least: float, tmp_path: Path) -> None:
    model, samples = tiny("llama"), texts(6)
    method = LouisKVPlus(budget=24, sink=2, window=8, unit_size=4, dense_layers=1, trigger=trigger)
    taus = calibrate(model, samples[2:], samples[:2], LENGTH, Target(rate=0.5), method)
    assert taus.compared == method.compared and taus.by_tau["tau"] == [least, *GRID]
    rates = torch.tensor(taus.by_tau["rates"])
    assert bool((rates[:, 0] <= rates[:, -1]).all())
    for layer, tau in zip(taus.by_tau["layers"], taus.tau[1:], strict=True):
        off = (rates[layer - 1] - 0.5).abs()
        assert taus.by_tau["tau"].index(tau) == int(off.argmin())
    # What is told of held-out texts is what the taus do there.
    path = tmp_path / "tau.json"
    taus.write(path)
    taken = take_in(model, samples[:2, :LENGTH], torch.ones(2, LENGTH, dtype=torch.bool))
    found = replace(method, calibration=str(path)).for_model(model)
    seen = probe(model, taken, samples[:2, LENGTH:], [found]).seen[0]
    assert taus.achieved["rate"] == pytest.approx(float(seen.retrieved[:, 1:].float().mean()), abs=1e-6)
    assert taus.curve[-1]["rate"] == pytest.approx(taus.achieved["rate"], abs=1e-6)
    assert taus.curve[-1]["error"] == pytest.approx(taus.achieved["error"], rel=1e-5)
    with pytest.raises(SettingsError, match="has taus for the"):
        LouisKV(calibration=str(path)).for_model(model)
    with pytest.raises(SettingsError, match="compared with nothing"):
        LouisKVPlus(calibration=str(path)).for_model(model)


@pytest.mark.parametrize(
    "target", [{}, {"rate": 0.1, "error": 0.1}, {"rate": 1.5}, {"error": -0.1}], ids=["none", "both", "high", "low"]
)
def test_a_target_is_one_number(target: dict[str, float]) -> None:
    with pytest.raises(SettingsError):
        Target(**target)


def test_too_few_samples_or_steps_are_refused() -> None:
    model = tiny("llama")
    with pytest.raises(SettingsError, match="samples of texts=0"):
        calibrate(model, texts(1)[:0], texts(1), LENGTH, Target(rate=0.3))
    with pytest.raises(SettingsError, match="samples of held_out=0"):
        calibrate(model, texts(1), texts(1)[:0], LENGTH, Target(rate=0.3))
    with pytest.raises(SettingsError, match="steps=1"):
        calibrate(model, texts(1), texts(1), LENGTH + STEPS - 1, Target(rate=0.3))
