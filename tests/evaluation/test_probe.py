"""Probes: what is noted of methods beside full attention, against attention computed by transformers."""

import pytest
import torch
from torch import Tensor

from louiskv import FreeKV, Full, LouisKV, Method, OracleTopK, Quest, SnapKV, StreamingLLM, attach
from louiskv.cache import passing
from louiskv.evaluation.probe import Probe, probe
from louiskv.evaluation.replay import take_in
from tests.families import prompt, tiny

LENGTH, STEPS = 40, 12
SMALL: dict[str, Method] = {
    "louiskv": LouisKV(budget=24, sink=2, window=8, unit_size=4, max_segment=4, dense_layers=1, tau=1.0),
    "freekv": FreeKV(budget=24, sink=4, window=8, page_size=4, dense_layers=1),
    "quest": Quest(budget=24, page_size=4, dense_layers=1),
    "snapkv": SnapKV(budget=24, observation=5, kernel=3, dense_layers=1),
    "streaming_llm": StreamingLLM(budget=24, sink=2, dense_layers=1),
}


def probed(methods: list[Method], padding: tuple[int, ...] = (), rows: slice = slice(None), **more: object) -> Probe:
    model = tiny("llama")
    inputs, output = prompt(LENGTH, 2, padding), prompt(STEPS, 2, seed=1)["input_ids"]
    ids, mask = inputs["input_ids"][rows], inputs["attention_mask"][rows].bool()
    if rows != slice(None):
        ids, mask = ids[:, mask[0]], mask[:, mask[0]]
    return probe(model, take_in(model, ids, mask), output[rows], methods, **more)  # type: ignore[arg-type]


def attention_by_transformers() -> list[Tensor]:
    """[B, Hkv, steps, T] of each layer: the mean weights of each query group."""
    model = tiny("llama")
    ids = torch.cat([prompt(LENGTH, 2)["input_ids"], prompt(STEPS, 2, seed=1)["input_ids"]], dim=1)
    with torch.inference_mode():
        found = model(ids, output_attentions=True).attentions
    return [weights[:, :, LENGTH:].unflatten(1, (2, -1)).mean(2) for weights in found]


def test_full_attention_loses_nothing() -> None:
    seen = probed([Full(), LouisKV(budget=400, sink=2, window=8)]).seen
    for each in seen:
        torch.testing.assert_close(each.recall, torch.ones_like(each.recall), atol=1e-5, rtol=0)
        assert float(each.error.max()) < 1e-4
    assert not seen[0].retrieved.any()
    assert seen[0].fetched_bytes == 0 == seen[0].tiers.host.bytes


def test_recall_is_the_mass_on_the_attended_tokens() -> None:
    seen = probed([StreamingLLM(budget=24, sink=2)], watched=(2, 3)).seen[0]
    for layer, weights in enumerate(attention_by_transformers()):
        for step in range(STEPS):
            length = LENGTH + step + 1
            kept = [0, 1, *range(length - 22, length)]
            expected = weights[:, :, step, kept].sum(-1).flatten()
            torch.testing.assert_close(seen.recall[step, layer], expected, atol=1e-5, rtol=1e-4)
            if layer == 2:
                assert sorted(seen.attended[step].tolist()) == kept
    # Sinks and window left out, nothing was chosen.
    assert len(seen.attended) == STEPS


def test_no_choice_of_as_many_tokens_has_more_of_the_mass_than_the_oracle() -> None:
    oracle, *others = probed([OracleTopK(budget=24, dense_layers=1), *SMALL.values()]).seen
    for each in others:
        assert bool((each.recall <= oracle.recall + 1e-5).all())
        assert bool((each.recall[:, 1:] < 1).any())
        assert float(each.error[:, 1:].mean()) > float(oracle.error[:, 1:].mean()) > 0


def test_where_a_method_retrieves_and_how_much_its_choice_changes() -> None:
    every, never = probed([SMALL["louiskv"], LouisKV(budget=24, sink=2, window=8, tau=-1.0, dense_layers=1)]).seen
    assert not every.retrieved[:, 0].any() and every.retrieved[:, 1:].all()
    assert never.retrieved[0, 1:].all() and not never.retrieved[1:].any()
    overlap = every.overlap[1:, 1:]
    assert every.overlap[0].isnan().all() and never.overlap[:, 1:].isnan().all()
    assert bool(((overlap >= 0) & (overlap <= 1)).all()) and 0 < float(overlap.mean()) < 1
    assert every.fetched_bytes > never.fetched_bytes > 0
    assert every.tiers.host.tokens > 0


def test_what_is_selected_for_the_next_step_is_told_apart() -> None:
    own, late = LouisKV(budget=24, sink=2, window=8), FreeKV(budget=24, sink=2, window=8, page_size=4, tau=-1.0)
    seen = probed([own, late]).seen
    assert seen[0].ahead_rate is None
    # The first step selects for itself, all others for the next one.
    assert seen[1].ahead_rate == pytest.approx(1 - 1 / STEPS)


def test_the_cosine_is_what_the_trigger_sees() -> None:
    got = probed([]).cosine
    assert got.shape == (STEPS, 4, 4) and got[0].isnan().all()
    model = tiny("llama")
    inputs, output = prompt(LENGTH, 2), prompt(STEPS, 2, seed=1)["input_ids"]
    with attach(model, LouisKV(budget=400, dense_layers=0)) as kv_cache, torch.inference_mode():
        model(**inputs, **passing(model, kv_cache))
        for token in output.split(1, dim=1):
            model(token, **passing(model, kv_cache))
    expected = torch.stack([layer.state.telemetry.similarity.tensor() for layer in kv_cache.managed], dim=1)
    torch.testing.assert_close(got.unflatten(2, (2, 2)).mean(3)[1:], expected[1:], atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", SMALL)
def test_a_batch_sees_what_its_rows_see_alone(name: str) -> None:
    together = probed([SMALL[name]], padding=(7,)).seen[0]
    for row in (0, 1):
        alone = probed([SMALL[name]], padding=(7,), rows=slice(row, row + 1)).seen[0]
        for figure in ("recall", "error", "overlap"):
            got = getattr(together, figure)[..., 2 * row : 2 * row + 2]
            torch.testing.assert_close(got, getattr(alone, figure), atol=1e-4, rtol=1e-3, equal_nan=True)


def test_progress_and_the_model_are_left_as_they_should_be() -> None:
    steps: list[int] = []
    probed([Full()], progress=steps.append)
    assert steps == list(range(1, STEPS + 1))
    assert tiny("llama").config._attn_implementation == "eager"
