"""The seam: every family, every way to generate, and every model that is refused."""

from typing import Any

import pytest
import torch
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    Cache,
    DynamicCache,
    PreTrainedModel,
    StaticCache,
)

from louiskv import Full, FullOffloaded, LouisKV, LouisKVPlus, Method, SettingsError, UnsupportedModelError, attach
from louiskv.attach import attention
from louiskv.cache import CACHE_ARGUMENTS, cache_of, passing
from louiskv.cache_layer import CacheLayer
from louiskv.handles import Handle
from louiskv.methods.retrieval_layer import RetrievalLayer
from tests.families import COMMON, FAMILIES, greedy, prompt, tiny

EVERYTHING = LouisKV(budget=400, sink=4, window=16, unit_size=4, max_segment=8, dense_layers=0)
LITTLE = LouisKV(budget=40, sink=4, window=16, unit_size=4, max_segment=8, dense_layers=0)
MANAGED = {"gemma2": 2, "gemma3_text": 1, "gpt_oss": 2, "olmo3": 1, "cohere2": 1, "qwen3_next": 2}


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_every_family_generates_what_eager_attention_generates(family: str) -> None:
    model = tiny(family)
    for inputs in (prompt(40), prompt(40, 3, (0, 9, 20))):
        expected = greedy(model, inputs, 30)
        for method in (EVERYTHING, FullOffloaded(chunk_size=16)):
            with attach(model, method) as cache:
                assert len(cache.managed) == MANAGED.get(family, model.config.num_hidden_layers)
                got = greedy(model, inputs, 30, **passing(model, cache))
                cache.check_integrity()
            assert torch.equal(got, expected)


@pytest.mark.parametrize("family", ["llama", "gemma3_text", "gpt_oss", "qwen3_next"])
def test_with_a_small_budget_every_kind_of_layer_still_runs(family: str) -> None:
    model = tiny(family)
    with attach(model, LITTLE) as cache:
        greedy(model, prompt(80, 2, (13,)), 60, **passing(model, cache))
        cache.check_integrity()
        report = cache.report()
    assert all(layer.tiers.resident.tokens <= 2 * 8 * 40 for layer in report.layers)
    assert report.to_dict()["fetched_bytes"] > 0
    assert (report.unmanaged_bytes > 0) == (family != "llama")


def test_beam_search_and_sampling() -> None:
    model, inputs = tiny("llama"), prompt(40, 2, (9,))
    for options in ({"num_beams": 3}, {"do_sample": True, "num_return_sequences": 3}):
        torch.manual_seed(0)
        expected = greedy(model, inputs, 30, **options)
        with attach(model, EVERYTHING) as cache:
            torch.manual_seed(0)
            got = greedy(model, inputs, 30, **passing(model, cache), **options)
            cache.check_integrity()
        assert torch.equal(got, expected)


def test_beam_search_under_pressure() -> None:
    model, inputs = tiny("llama"), prompt(80, 2, (9,))
    with attach(model, LITTLE) as cache:
        out = greedy(model, inputs, 40, **passing(model, cache), num_beams=3)
        cache.check_integrity()
    assert out.shape == (2, 120)


def test_assisted_decoding_crops_what_was_rejected() -> None:
    model, assistant, inputs = tiny("llama"), tiny("llama", seed=1), prompt(40)
    expected = greedy(model, inputs, 40)
    for options in ({"assistant_model": assistant}, {"prompt_lookup_num_tokens": 3}):
        for method in (EVERYTHING, Full(), FullOffloaded()):
            with attach(model, method) as cache:
                got = greedy(model, inputs, 40, **passing(model, cache), **options)
                cache.check_integrity()
            assert torch.equal(got, expected)


@pytest.mark.parametrize("padding", [(0,), (9, 0)])
@pytest.mark.parametrize("family", ["llama", "gemma3_text", "gpt_oss"])
def test_chunked_prefill(family: str, padding: tuple[int, ...]) -> None:
    model, inputs = tiny(family), prompt(70, len(padding), padding)
    expected = greedy(model, inputs, 20)
    with attach(model, EVERYTHING) as cache:
        got = greedy(model, inputs, 20, **passing(model, cache), prefill_chunk_size=16)
        cache.check_integrity()
        without_cache = greedy(model, inputs, 20, prefill_chunk_size=16)
    assert torch.equal(got, expected) and torch.equal(without_cache, expected)


@pytest.mark.parametrize(("padding", "any_mask"), [((0,), False), ((9, 0), True)])
def test_a_mask_is_made_only_where_there_is_padding(
    padding: tuple[int, ...], any_mask: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    masks, attend = [], CacheLayer.attend

    def watched(layer: CacheLayer, query: torch.Tensor, mask: torch.Tensor | None, *others: Any) -> torch.Tensor:
        masks.append(mask)
        return attend(layer, query, mask, *others)

    monkeypatch.setattr(CacheLayer, "attend", watched)
    model = tiny("llama")
    with attach(model, EVERYTHING) as cache:
        greedy(model, prompt(70, len(padding), padding), 2, **passing(model, cache), prefill_chunk_size=16)
    assert len(masks) == 6 * model.config.num_hidden_layers
    assert [mask is not None for mask in masks] == [any_mask] * len(masks)


def test_all_layers_are_told_of_padding_by_one_look(monkeypatch: pytest.MonkeyPatch) -> None:
    seen, looks, absorb, to_list = [], [], RetrievalLayer.absorb, torch.Tensor.tolist

    def watched(layer: RetrievalLayer, keys: torch.Tensor, values: torch.Tensor, valid: torch.Tensor | None) -> None:
        seen.append(valid)
        absorb(layer, keys, values, valid)

    def looked(tensor: torch.Tensor) -> Any:
        looks.append(tensor.tolist() if tensor.dim() == 0 else to_list(tensor))
        return looks[-1]

    monkeypatch.setattr(RetrievalLayer, "absorb", watched)
    model, inputs = tiny("llama"), prompt(30, 2, (9,))
    with attach(model, EVERYTHING) as cache, torch.no_grad():
        monkeypatch.setattr(torch.Tensor, "tolist", looked)
        model(**inputs, **passing(model, cache))
        monkeypatch.undo()
        cache.check_integrity()
        assert cache.report().prompt_tokens == 51
    valid = seen[0]
    assert valid is not None and len(seen) == model.config.num_hidden_layers > 1
    assert all(each is valid for each in seen)
    assert valid.tolist() == [[False] * 9 + [True] * 21, [True] * 30]
    assert looks.count([21, 30]) == 1


def test_a_mask_that_covers_only_new_tokens_is_refused() -> None:
    model = tiny("gemma3_text")
    with attach(model, EVERYTHING) as cache, torch.inference_mode():
        for num_new in (12, 1):
            cache.reset()
            model(**prompt(40), **passing(model, cache))
            new = prompt(num_new, seed=1)["input_ids"]
            with pytest.raises(UnsupportedModelError, match="hides tokens that the cache holds"):
                model(new, attention_mask=torch.ones_like(new), **passing(model, cache))


def test_the_last_query_of_a_layer_left_alone_stands_at_the_last_key() -> None:
    query, key, value = torch.randn(1, 8, 3, 8), torch.randn(1, 2, 10, 8), torch.randn(1, 2, 10, 8)
    mask = torch.ones(1, 1, 3, 10, dtype=torch.bool).tril(7)
    module = tiny("llama").model.layers[0].self_attn
    out, expected = (attention(module, query, key, value, each)[0] for each in (None, mask))
    torch.testing.assert_close(out, expected)


def test_several_turns_on_one_cache() -> None:
    model, first = tiny("llama"), prompt(40)
    follow_up = prompt(25, seed=1)["input_ids"]

    def talk(**options: object) -> torch.Tensor:
        answer = greedy(model, first, 20, **options)
        ids = torch.cat([answer, follow_up], 1)
        return greedy(model, {"input_ids": ids, "attention_mask": torch.ones_like(ids)}, 20, **options)

    expected = talk()
    for method in (EVERYTHING, Full(), FullOffloaded(chunk_size=16)):
        with attach(model, method) as cache:
            got = talk(**passing(model, cache))
            cache.check_integrity()
            assert cache.get_seq_length() == 40 + 20 + 25 + 20 - 1
        assert torch.equal(got, expected)


def test_a_second_prompt_padded_in_the_middle() -> None:
    model = tiny("llama")
    inputs, second = prompt(30, 2, (7,)), prompt(12, 2, (0, 5), seed=1)
    mask = torch.cat([inputs["attention_mask"], second["attention_mask"]], 1)
    position = mask.cumsum(1).sub(1).clamp(min=0)

    def last_logits(cache: Cache) -> torch.Tensor:
        with torch.inference_mode():
            model(**inputs, position_ids=position[:, :30], **passing(model, cache))
            out = model(
                input_ids=second["input_ids"],
                attention_mask=mask,
                position_ids=position[:, 30:],
                **passing(model, cache),
            )
        return out.logits[:, -1]

    expected = last_logits(DynamicCache(config=model.config))
    with attach(model, EVERYTHING) as cache:
        got = last_logits(cache)
        cache.check_integrity()
    torch.testing.assert_close(got, expected, atol=1e-4, rtol=1e-4)


def test_plain_generate_starts_the_cache_anew() -> None:
    model, inputs = tiny("llama"), prompt(40)
    with attach(model, LITTLE) as cache:
        first = greedy(model, inputs, 20)
        assert cache.get_seq_length() == 59
        assert torch.equal(greedy(model, inputs, 20), first)
        assert cache.get_seq_length() == 59
        model(**inputs, use_cache=False)
        assert cache.get_seq_length() == 59
        model(**inputs)
        assert cache.get_seq_length() == 40


@pytest.mark.parametrize("name", CACHE_ARGUMENTS)
def test_both_names_of_the_argument_reach_the_model(name: str) -> None:
    model, inputs = tiny("llama"), prompt(40, 2, (7,))
    expected = greedy(model, inputs, 20)
    with attach(model, LITTLE) as cache:
        with torch.inference_mode():
            logits = model(**inputs, **{name: cache}).logits
        assert logits.shape[:2] == (2, 40)
        assert cache.get_seq_length() == 40
        assert cache.managed[0].prompt_tokens == 73
        # Without a cache `generate` makes one, under the name of its version.
        greedy(model, inputs, 20)
        assert cache.get_seq_length() == 59
    assert torch.equal(greedy(model, inputs, 20), expected)


def test_another_cache_is_refused() -> None:
    model, inputs = tiny("llama"), prompt(10)
    filled = cache_of(model(**inputs))
    with attach(model, LITTLE):
        with pytest.raises(UnsupportedModelError, match="DynamicCache that already holds tokens"):
            model(**inputs, **passing(model, filled))
        with pytest.raises(UnsupportedModelError, match="StaticCache"):
            model(**inputs, **passing(model, StaticCache(config=model.config, max_cache_len=20)))


def test_a_cache_used_without_louiskv_attention_is_loud() -> None:
    model, inputs = tiny("llama"), prompt(10)
    with attach(model, LITTLE) as cache:
        pass
    with pytest.raises(UnsupportedModelError, match="louiskv.attach"):
        model(**inputs, **passing(model, cache))
    with pytest.raises(UnsupportedModelError, match="call `cache.reset\\(\\)`"):
        model(**inputs, **passing(model, cache))


def test_attaching_twice_is_refused() -> None:
    model = tiny("llama")
    with (
        attach(model, LITTLE),
        pytest.raises(SettingsError, match="attached to louiskv already"),
        attach(model, LITTLE),
    ):
        pass
    assert model.config._attn_implementation == "eager"


def refused(model: PreTrainedModel, message: str) -> None:
    before = model.config._attn_implementation
    with pytest.raises(UnsupportedModelError, match=message), attach(model, LITTLE):
        pass
    assert model.config._attn_implementation == before
    assert not model._forward_pre_hooks


def test_models_that_cannot_be_served_are_refused() -> None:
    small = {"vocab_size": 50, "d_model": 16, "d_kv": 4, "d_ff": 16, "num_layers": 1, "num_heads": 2}
    refused(AutoModelForSeq2SeqLM.from_config(AutoConfig.for_model("t5", **small)), "encoder-decoder")
    bert = AutoConfig.for_model(
        "bert", vocab_size=50, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16
    )
    refused(AutoModel.from_config(bert), "bert is an encoder")
    refused(AutoModelForCausalLM.from_config(bert), "bert is an encoder")
    refused(AutoModel.from_config(tiny("llama").config), "has no language head")
    latent = tiny(
        "deepseek_v3",
        q_lora_rank=8,
        kv_lora_rank=8,
        qk_rope_head_dim=8,
        qk_nope_head_dim=8,
        v_head_dim=8,
        n_routed_experts=4,
        num_experts_per_tok=2,
        n_group=1,
        topk_group=1,
        num_key_value_heads=8,
        moe_intermediate_size=16,
    )
    refused(latent, "MLA")
    refused(tiny("mistral", sliding_window=16), "no full-attention layer to manage")
    mamba = {**COMMON, "state_size": 4, "num_hidden_layers": 2}
    config = AutoConfig.for_model("mamba", **{key: mamba[key] for key in ("vocab_size", "hidden_size", "state_size")})
    refused(AutoModelForCausalLM.from_config(config), "no full-attention layer to manage|attention of its own")


def test_handles_show_their_shape_and_nothing_else() -> None:
    model = tiny("llama")
    with attach(model, LITTLE) as cache:
        keys, values = cache.managed[0].update(torch.zeros(2, 2, 5, 8), torch.ones(2, 2, 5, 6))
    assert isinstance(keys, Handle)
    assert keys.shape == (2, 2, 5, 8) and values.shape == (2, 2, 5, 6)
    assert (keys.size(-2), keys.dim(), keys.dtype, keys.device.type) == (5, 4, torch.float32, "cpu")
    for misuse in (lambda: keys + 1, lambda: torch.cat([keys, keys]), lambda: keys.transpose(1, 2), lambda: keys[0]):
        with pytest.raises(UnsupportedModelError, match="attn_implementation='louiskv'"):
            misuse()


def test_a_float_mask_is_refused() -> None:
    model = tiny("llama")
    with attach(model, LITTLE), pytest.raises(UnsupportedModelError, match="must be boolean"):
        model(input_ids=prompt(5)["input_ids"], attention_mask=torch.zeros(1, 1, 5, 5))


@pytest.mark.parametrize("method", [LITTLE, LouisKVPlus(budget=40, sink=4, window=16, dense_layers=0)], ids=repr)
def test_the_cpu_has_all_that_our_own_methods_need(method: Method) -> None:
    model = tiny("llama")
    with attach(model, method, impl="cpu") as cache:
        assert greedy(model, prompt(700), 20, **passing(model, cache)).shape == (1, 720)
        cache.check_integrity()
