"""Head scores against loops over the attention weights that transformers itself gives."""

from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModel, PreTrainedModel

from louiskv import (
    NotCalibratedError,
    RazorAttention,
    SettingsError,
    StreamingLLM,
    UnsupportedModelError,
    attach,
    calibration,
    score_heads,
)
from louiskv.cache import passing
from louiskv.heads import HeadScores
from louiskv.measured import ModelIdentity
from tests.families import COMMON, greedy, prompt, tiny


@pytest.fixture(autouse=True)
def cache_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where this test's scores are saved."""
    monkeypatch.setenv("LOUISKV_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def tokens_read(model: PreTrainedModel, **options: int) -> tuple[HeadScores, list[int]]:
    """The scores, and what the model was given to read."""
    seen: list[torch.Tensor] = []
    hook = model.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(kwargs["input_ids"]), with_kwargs=True
    )
    scores = score_heads(model, **options)  # type: ignore[arg-type]
    hook.remove()
    (ids,) = seen
    assert len(ids) == 1
    return scores, ids[0].tolist()


def written_out(weights: list[list[list[float]]], start: int, block: int, ahead: int, group_size: int) -> list[float]:
    """From the weights [head][query][key] of one layer, the score of each KV head."""
    by_head = []
    for rows in weights:
        total, number = 0.0, 0
        for place in range(start + block, len(rows)):
            number += 1
            for earlier in range(start, place):
                if (place - earlier) % block == 0:
                    total += rows[place][earlier + ahead]
        by_head.append(total / number)
    return [max(by_head[first : first + group_size]) for first in range(0, len(by_head), group_size)]


@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt_oss"])
@pytest.mark.parametrize("copies", [2, 4])
def test_echo_and_induction_are_what_the_loops_count(family: str, copies: int) -> None:
    model = tiny(family)
    scores, ids = tokens_read(model, block=9, copies=copies, seed=3)
    assert ids == [1, *ids[1:10] * copies]
    with torch.inference_mode():
        attentions = model(torch.tensor([ids]), output_attentions=True).attentions
    managed = [
        kind == "full_attention" for kind in getattr(model.config, "layer_types", None) or ["full_attention"] * 4
    ]
    for layer, weights in enumerate(attentions):
        for got, ahead in ((scores.echo[layer], 0), (scores.induction[layer], 1)):
            expected = written_out(weights[0].tolist(), 1, 9, ahead, 4) if managed[layer] else []
            assert got == pytest.approx(expected, rel=1e-4, abs=1e-7)
    assert scores.settings == {"block": 9, "copies": copies, "seed": 3}


def test_without_a_first_token_the_block_begins_at_once() -> None:
    model = tiny("llama", bos_token_id=None)
    scores, ids = tokens_read(model, block=9, copies=3)
    assert ids == ids[:9] * 3
    with torch.inference_mode():
        attentions = model(torch.tensor([ids]), output_attentions=True).attentions
    for layer, weights in enumerate(attentions):
        assert scores.echo[layer] == pytest.approx(written_out(weights[0].tolist(), 0, 9, 0, 4), rel=1e-4)


def test_many_tokens_are_read_in_parts_without_changing_the_result(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = score_heads(tiny("llama"), block=20, copies=3)
    monkeypatch.setattr(calibration, "MAX_WEIGHTS", 8 * 61 * 7)
    in_parts = score_heads(tiny("llama"), block=20, copies=3)
    for got, expected in ((in_parts.echo, whole.echo), (in_parts.induction, whole.induction)):
        torch.testing.assert_close(torch.tensor(got), torch.tensor(expected))


def test_a_head_that_looks_back_is_found() -> None:
    # Slow rotations, so that the same token has nearly the same key wherever it stands.
    model = tiny("llama", head_dim=32, rope_parameters={"rope_type": "default", "rope_theta": 1e12})
    attention = model.model.layers[0].self_attn
    with torch.no_grad():
        # In the first layer, queries that are like the keys of KV head 1 find the same token again.
        attention.q_proj.weight.view(8, 32, 64)[4:] = 0.3 * attention.k_proj.weight.view(2, 32, 64)[1]
    scores = score_heads(model, block=30, copies=3)
    second, first = sorted(score for heads in scores.echo for score in heads)[-2:]
    assert scores.echo[0][1] == first > 3 * second
    assert scores.best(echo=0.01, induction=0) == ((1,), (), (), ())


def test_the_block_fits_the_positions_of_the_model() -> None:
    scores, ids = tokens_read(tiny("llama", max_position_embeddings=50))
    assert scores.settings["block"] == 12
    assert len(ids) == 49
    with pytest.raises(SettingsError, match="copies=25 is too many for a model of 50 positions"):
        score_heads(tiny("llama", max_position_embeddings=50), copies=25)


def test_the_same_seed_gives_the_same_tokens_and_another_others() -> None:
    model = tiny("llama")
    first, again, other = (tokens_read(model, block=9, copies=2, seed=seed)[1] for seed in (0, 0, 1))
    assert first == again != other


def test_progress_counts_the_managed_layers() -> None:
    told: list[tuple[int, int]] = []
    score_heads(tiny("gemma2"), block=9, copies=2, progress=lambda done, of: told.append((done, of)))
    assert told == [(1, 2), (2, 2)]


def test_scores_are_saved_and_the_method_finds_them(cache_folder: Path) -> None:
    model, inputs = tiny("llama"), prompt(60, 2, (9,))
    method = RazorAttention(window=8, share=0.1, echo=0.2, induction=0.3)
    with pytest.raises(NotCalibratedError), attach(model, method):
        pass
    scores = score_heads(model, block=9, copies=3)
    (path,) = cache_folder.rglob("*.json")
    assert HeadScores.load(path) == scores
    assert scores.model == ModelIdentity.of(model)
    assert method.for_model(model).kv_heads == scores.best(0.2, 0.3)
    with attach(model, method) as kv_cache:
        assert greedy(model, inputs, 30, **passing(model, kv_cache)).shape == (2, 90)
        kv_cache.check_integrity()
    with pytest.raises(NotCalibratedError):
        method.for_model(tiny("llama", seed=1))


def test_the_model_is_left_as_it_was() -> None:
    model, inputs = tiny("llama"), prompt(20)
    expected = greedy(model, inputs, 10)

    def fail(done: int, of: int) -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        score_heads(model, block=9, copies=2, progress=fail)
    score_heads(model, block=9, copies=2)
    assert model.config._attn_implementation == "eager"
    assert torch.equal(greedy(model, inputs, 10), expected)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"block": 1}, "block=1 .* at least 2"),
        ({"block": 2.5}, "block=2.5 .* whole number"),
        ({"copies": 1}, "copies=1 .* at least 2"),
        ({"copies": "two"}, "copies='two' .* whole number"),
    ],
)
def test_wrong_settings_say_what_is_allowed(wrong: dict[str, object], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        score_heads(tiny("llama"), **wrong)  # type: ignore[arg-type]


def test_what_cannot_be_measured_is_refused(cache_folder: Path) -> None:
    model = tiny("llama")
    with attach(model, StreamingLLM(budget=24)), pytest.raises(SettingsError, match="attached to louiskv already"):
        score_heads(model, block=9, copies=2)
    headless = AutoModel.from_config(AutoConfig.for_model("llama", **COMMON))
    with pytest.raises(UnsupportedModelError, match="no language head"):
        score_heads(headless, block=9, copies=2)
    assert not cache_folder.exists()
