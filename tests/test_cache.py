"""The cache as transformers sees it: lengths, cropping, batches, loading."""

from typing import Any

import pytest
import torch

from louiskv import H2O, ClusterKV, FreeKV, Full, LouisKV, LouisKVCache, Method, UnsupportedModelError, attach
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


def decoded(method: Method, length: int, steps: int, padding: int = 10) -> LouisKVCache:
    """A cache behind a ragged batch of two, of which both sequences become the shorter one after some steps."""
    model, inputs = tiny("llama"), prompt(length, 2, (padding,))
    mask = inputs["attention_mask"]
    with torch.inference_mode(), attach(model, method) as cache:
        model(**inputs, position_ids=(mask.cumsum(1) - 1).clamp(min=0), **passing(model, cache))
        for step in range(steps + 14):
            if step == steps:
                shorter = int(mask.sum(1).argmin())
                cache.reorder_cache(torch.tensor([shorter, shorter]))  # type: ignore[arg-type]
                mask = mask[[shorter, shorter]]
                cache.check_integrity()
            mask = torch.cat([mask, mask.new_ones(2, 1)], 1)
            position = (mask.sum(1) - 1)[:, None]
            model(torch.full((2, 1), 5), attention_mask=mask, position_ids=position, **passing(model, cache))
    return cache


@pytest.mark.parametrize(
    "method",
    [
        LouisKV(budget=40, sink=4, window=16, dense_layers=1),
        FreeKV(budget=40, sink=4, window=16, page_size=4, dense_layers=1),
        ClusterKV(budget=32, sink=16, unit_size=5, output_size=10, dense_layers=0),
        H2O(budget=16),
        Full(),
    ],
    ids=lambda method: type(method).__name__,
)
def test_a_batch_may_become_copies_of_its_shorter_sequence_at_any_time(method: Method) -> None:
    for length in range(12, 44, 3):
        for steps in (0, 1, 3):
            cache = decoded(method, length, steps)
            cache.check_integrity()
            assert cache.report().layers[0].steps == steps + 14


@pytest.mark.parametrize(
    ("row", "column", "message"), [(0, 3, "hides tokens that the cache holds"), (1, 20, "pads a single token")]
)
def test_a_step_whose_mask_cannot_be_honoured_is_refused(row: int, column: int, message: str) -> None:
    model = tiny("llama")
    mask = torch.ones(2, 21, dtype=torch.int64)
    mask[row, column] = 0
    with attach(model, METHOD) as cache, torch.inference_mode():
        model(**prompt(20, 2), **passing(model, cache))
        with pytest.raises(UnsupportedModelError, match=message):
            model(torch.full((2, 1), 5), attention_mask=mask, **passing(model, cache))


def test_a_prompt_whose_mask_cannot_be_honoured_is_refused() -> None:
    model, inputs = tiny("llama"), prompt(20, 2, (4,))
    other_padding = torch.cat([inputs["attention_mask"].flip(0), torch.ones(2, 6, dtype=torch.int64)], 1)
    band = torch.ones(20, 20, dtype=torch.bool).tril() & ~torch.ones(20, 20, dtype=torch.bool).tril(-4)
    with attach(model, METHOD) as cache, torch.inference_mode():
        model(**inputs, **passing(model, cache))
        with pytest.raises(UnsupportedModelError, match="other tokens than the padding"):
            model(torch.full((2, 6), 5), attention_mask=other_padding, **passing(model, cache))
        for none in (None, torch.ones_like(other_padding), torch.ones_like(other_padding[:, :6])):
            cache.reset()
            model(**inputs, **passing(model, cache))
            with pytest.raises(UnsupportedModelError, match="other tokens than the padding"):
                model(torch.full((2, 6), 5), attention_mask=none, **passing(model, cache))
        cache.reset()
        with pytest.raises(UnsupportedModelError, match="hides tokens of a prompt from its last token"):
            model(torch.full((1, 20), 5), attention_mask=band[None, None], **passing(model, cache))


@pytest.mark.parametrize("method", [METHOD, H2O(budget=16), Full()], ids=lambda method: type(method).__name__)
def test_another_batch_size_is_refused(method: Method) -> None:
    model = tiny("llama")
    with attach(model, method) as cache, torch.inference_mode():
        model(**prompt(20, 2), **passing(model, cache))
        for number in (1, 3):
            with pytest.raises(UnsupportedModelError, match=f"holds 2 sequences, .* given {number}"):
                model(torch.full((number, 1), 5), **passing(model, cache))


@pytest.mark.parametrize("num_tokens", [1, 5])
def test_an_interrupted_pass_is_noticed_by_the_next(num_tokens: int) -> None:
    model = tiny("llama")
    with attach(model, METHOD) as cache, torch.inference_mode():
        model(**prompt(30), **passing(model, cache))
        next_ids = torch.full((1, num_tokens), 5)
        hook = model.model.layers[2].register_forward_pre_hook(interrupt)
        with pytest.raises(KeyboardInterrupt):
            model(next_ids, **passing(model, cache))
        hook.remove()
        with pytest.raises(UnsupportedModelError, match=f"interrupted: layers hold 30 to {30 + num_tokens} tokens"):
            model(next_ids, **passing(model, cache))
        for layer in cache.managed:
            layer.crop(30 - layer.get_seq_length())
        cache.check_integrity()
        model(next_ids, **passing(model, cache))
        assert cache.get_seq_length() == 30 + num_tokens


def interrupt(*_: object) -> None:
    raise KeyboardInterrupt


def test_a_prompt_that_was_never_attended_to_is_no_part_of_the_report_and_can_be_cropped() -> None:
    cache = LouisKVCache(tiny("llama").config, METHOD)
    states = torch.randn(1, 2, 8, 8)
    cache.managed[0].update(states, states)
    assert cache.report().layers == []
    cache.managed[0].crop(-8)
    assert cache.get_seq_length() == 0
