"""The cache as transformers sees it: lengths, cropping, batches, loading."""

from typing import Any

import pytest
import torch

from louiskv import Full, LouisKV, LouisKVCache, UnsupportedModelError, attach
from louiskv.cache import cache_of, passing
from tests.families import greedy, prompt, tiny

METHOD = LouisKV(budget=40, sink=4, window=16, unit_size=4, max_segment=8, dense_layers=1)


def test_lengths_and_masks_count_padding() -> None:
    model = tiny("llama")
    with attach(model, METHOD) as cache:
        model(**prompt(30, 2, (7,)), **passing(model, cache))
    assert cache.get_seq_length() == 30
    assert cache.get_mask_sizes(5, 0) == (35, 0)
    assert cache.get_max_length() == -1
    assert cache.managed[1].state.tiers().seen.tokens == 2 * (30 + 23)


def test_cropping_counts_tokens_and_not_padding() -> None:
    model = tiny("llama")
    with attach(model, METHOD) as cache:
        greedy(model, prompt(30, 2, (7,)), 5, **passing(model, cache))
        cache.crop(-10)
        cache.check_integrity()
        assert cache.get_seq_length() == 24
        assert cache.managed[1].state.tiers().seen.tokens == 2 * (24 + 17)
        cache.crop(-24)
        assert cache.get_seq_length() == 0
        assert not cache.managed[0].is_initialized


@pytest.mark.parametrize("number", [1, -31])
def test_cropping_what_is_not_there_is_refused(number: int) -> None:
    model = tiny("llama")
    with attach(model, METHOD) as cache:
        model(**prompt(30), **passing(model, cache))
        with pytest.raises(ValueError, match=r"from -30 to 0"):
            cache.crop(number)


def test_sequences_are_repeated_and_selected() -> None:
    model, inputs = tiny("llama"), prompt(60, 2, (7,))
    for method in (METHOD, Full()):
        with attach(model, method) as cache, torch.inference_mode():
            model(**inputs, **passing(model, cache))
            cache.batch_repeat_interleave(2)
            cache.batch_select_indices(torch.tensor([3, 0]))
            cache.check_integrity()
            assert cache.managed[0].state.batch_size == 2
            seen = cache.managed[0].state.tiers().seen.tokens
            assert seen == 2 * (60 + 53)
            step = model(input_ids=torch.tensor([[5], [5]]), **passing(model, cache)).logits
            cache.reset()
            swapped = {name: value.flip(0) for name, value in inputs.items()}
            model(**swapped, **passing(model, cache))
            expected = model(input_ids=torch.tensor([[5], [5]]), **passing(model, cache)).logits
        torch.testing.assert_close(step, expected, atol=1e-4, rtol=1e-4)


def test_loading_is_taking_in_a_prompt() -> None:
    model, inputs = tiny("llama"), prompt(60)
    with attach(model, METHOD) as cache, torch.inference_mode():
        plain = model(**inputs, use_cache=False, output_hidden_states=False)
        assert cache_of(plain) is None
    with torch.inference_mode():
        stock: Any = cache_of(model(**inputs))
    loaded = LouisKVCache(model.config, METHOD)
    for layer in loaded.managed:
        layer.load(stock.layers[layer.index].keys, stock.layers[layer.index].values)
    loaded.check_integrity()
    with attach(model, METHOD) as cache, torch.inference_mode():
        model(**inputs, **passing(model, cache))
        step = {"input_ids": torch.tensor([[5]])}
        expected = model(**step, **passing(model, cache)).logits
        got = model(**step, **passing(model, loaded)).logits
    torch.testing.assert_close(got, expected, atol=1e-4, rtol=1e-4)


def test_a_listener_hears_of_each_layer_and_chunk() -> None:
    model, heard = tiny("llama"), []
    with attach(model, METHOD) as cache:
        cache.watch_prompt(lambda layer, tokens: heard.append((layer, tokens)))
        greedy(model, prompt(40), 2, **passing(model, cache), prefill_chunk_size=25)
        cache.watch_prompt(None)
        cache.reset()
        model(**prompt(10), **passing(model, cache))
    assert heard == [(layer, tokens) for tokens in (25, 15) for layer in range(4)]


def test_device_memory_stays_flat_while_decoding() -> None:
    model = tiny("llama", max_position_embeddings=4096)
    method = LouisKV(budget=64, sink=4, window=32, unit_size=8, dense_layers=0)
    with attach(model, method) as cache, torch.inference_mode():
        model(**prompt(100), **passing(model, cache))
        sizes = set()
        for _ in range(400):
            model(input_ids=torch.tensor([[5]]), **passing(model, cache))
            sizes.add(sum(layer.state.tiers().resident.bytes for layer in cache.managed))
    assert len(sizes) == 1


def test_a_model_without_full_attention_has_nothing_to_manage() -> None:
    with pytest.raises(UnsupportedModelError, match="DynamicSlidingWindowLayer"):
        LouisKVCache(tiny("mistral", sliding_window=16).config, METHOD)


def test_a_cache_filled_in_inference_mode_goes_on_outside_it() -> None:
    model, inputs = tiny("llama"), prompt(60, 2, (7,))
    with attach(model, METHOD) as cache:
        with torch.inference_mode():
            first = model(**inputs, **passing(model, cache)).logits[:, -1:].argmax(-1)
        mask = torch.cat([inputs["attention_mask"], torch.ones(2, 1, dtype=torch.long)], 1)
        ids = torch.cat([inputs["input_ids"], first], 1)
        model.generate(ids, attention_mask=mask, **passing(model, cache), max_new_tokens=10)  # type: ignore[operator]
        cache.check_integrity()
        model(input_ids=torch.tensor([[5], [5]]), **passing(model, cache))


@pytest.mark.parametrize("family", ["gemma3_text", "qwen3_next"])
def test_reset_empties_the_other_layers_too(family: str) -> None:
    model = tiny(family)
    with attach(model, METHOD) as cache:
        first = greedy(model, prompt(40, 2, (7,)), 20, **passing(model, cache))
        cache.reset()
        assert torch.equal(greedy(model, prompt(40, 2, (7,)), 20, **passing(model, cache)), first)
