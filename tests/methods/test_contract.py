"""What every method must keep, whatever it does: the invariants of docs/design.md."""

from copy import deepcopy
from functools import cache

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import PreTrainedModel

from louiskv import (
    FIER,
    H2O,
    METHODS,
    ArkVale,
    ClusterKV,
    FreeKV,
    Full,
    FullOffloaded,
    KeepKV,
    LouisKV,
    LouisKVPlus,
    LServeReuse,
    Method,
    OracleTopK,
    Quest,
    RaaS,
    RazorAttention,
    SnapKV,
    StreamingLLM,
    attach,
)
from louiskv.cache import LouisKVCache, cache_of, passing
from louiskv.methods.base import KVLayer
from louiskv.methods.retrieval import Retrieval
from louiskv.ops import native
from louiskv.units.pages import Pages
from tests.families import greedy, prompt, tiny

PER_QUERY_HEAD = "per query head"

# A mean on the edge between two codes of 8 bits goes to either by the last bit of a key, and the estimate with it.
ROUNDED = {"louiskv_plus": 2e-3}

# One line a method: settings under which it holds everything, and settings under which it must choose.
CASES: dict[str, tuple[Method, Method]] = {
    "full": (Full(), Full()),
    "full_offloaded": (FullOffloaded(), FullOffloaded(chunk_size=16)),
    "oracle_top_k": (OracleTopK(budget=400, dense_layers=1), OracleTopK(budget=24, dense_layers=0)),
    "louiskv": (
        LouisKV(budget=400, sink=3, window=10, unit_size=4, max_segment=6, dense_layers=1),
        LouisKV(budget=40, sink=3, window=12, unit_size=4, max_segment=8, dense_layers=0, tau=0.3),
    ),
    "louiskv_plus": (
        LouisKVPlus(budget=400, sink=3, window=10, unit_size=4, dense_layers=1),
        LouisKVPlus(budget=40, sink=3, window=12, unit_size=4, dense_layers=0),
    ),
    "freekv": (
        FreeKV(budget=400, sink=3, window=8, page_size=4, dense_layers=1),
        FreeKV(budget=40, sink=4, window=9, page_size=4, dense_layers=0, tau=0.3),
    ),
    "quest": (Quest(budget=400, page_size=4, dense_layers=1), Quest(budget=24, page_size=4, dense_layers=0)),
    "lserve_reuse": (
        LServeReuse(budget=400, page_size=4, dense_layers=1),
        LServeReuse(budget=24, page_size=4, stride=3, dense_layers=0),
    ),
    "arkvale": (
        ArkVale(budget=400, sink=4, window=8, page_size=4, dense_layers=1),
        ArkVale(budget=32, sink=4, window=12, page_size=4, dense_layers=0),
    ),
    "clusterkv": (
        ClusterKV(budget=400, sink=3, unit_size=5, output_size=10, dense_layers=1),
        ClusterKV(budget=32, sink=2, unit_size=5, output_size=10, dense_layers=0),
    ),
    "streaming_llm": (StreamingLLM(budget=400, dense_layers=1), StreamingLLM(budget=24, sink=2)),
    "h2o": (H2O(budget=400, dense_layers=1), H2O(budget=24)),
    "snapkv": (SnapKV(budget=400, dense_layers=1), SnapKV(budget=24, observation=5, kernel=3)),
    "raas": (RaaS(budget=400, page_size=4, dense_layers=1), RaaS(budget=32, page_size=4, threshold=0.02)),
    "keepkv": (KeepKV(budget=400, dense_layers=1), KeepKV(budget=24, window=5, threshold=0.2, decay=0.7)),
    "razor_attention": (
        RazorAttention(window=400, kv_heads=((), (0,), (0,), (0,))),
        RazorAttention(window=10, share=0.3, sink=2, kv_heads=((), (0,), (), (0,))),
    ),
    "fier": (FIER(budget=400, group_size=4, dense_layers=1), FIER(budget=24, group_size=4, dense_layers=0)),
    # No method of its own: any retrieval whose query heads select alone.
    PER_QUERY_HEAD: (
        Retrieval(budget=400, sink=3, window=10, units=Pages(4), dense_layers=1, per_query_head=True),
        Retrieval(budget=40, sink=3, window=12, units=Pages(4), dense_layers=0, per_query_head=True),
    ),
}
NAMES = sorted(CASES)
# The specification, and what runs beside it here; a GPU's kernels are held to it operation by operation.
IMPLS = ["torch", *(["cpu,torch"] if native.why_not() is None else [])]
GROUPS = {1: (2, 2), 3: (6, 2), 4: (8, 2), 8: (8, 1)}


@cache
def model_of_group(group_size: int) -> PreTrainedModel:
    heads, kv_heads = GROUPS[group_size]
    return tiny(
        "llama", hidden_size=8 * heads, num_attention_heads=heads, num_key_value_heads=kv_heads, num_hidden_layers=3
    )


def decode(
    model: PreTrainedModel, inputs: dict[str, torch.Tensor], output: torch.Tensor, kv_cache: LouisKVCache | None
) -> torch.Tensor:
    """Logits [B, steps, V] of a prompt's last token and of given output tokens, one step at a time."""
    mask = inputs["attention_mask"]
    position = (mask.cumsum(1) - 1).clamp(min=0)
    with torch.inference_mode():
        step = model(**inputs, position_ids=position, **passing(model, kv_cache), use_cache=True)
        logits = [step.logits[:, -1]]
        for column in range(output.shape[1]):
            mask = torch.cat([mask, mask.new_ones(len(mask), 1)], 1)
            step = model(
                input_ids=output[:, column : column + 1],
                attention_mask=mask,
                position_ids=(mask.sum(1) - 1)[:, None],
                **passing(model, cache_of(step)),
            )
            logits.append(step.logits[:, -1])
    return torch.stack(logits, 1)


def test_every_method_is_here() -> None:
    assert set(CASES) == {*METHODS, PER_QUERY_HEAD}


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("name", NAMES)
@settings(deadline=None, max_examples=12)
@given(
    group_size=st.sampled_from(sorted(GROUPS)),
    length=st.integers(1, 60),
    padding=st.lists(st.integers(0, 30), max_size=2),
    num_output=st.integers(1, 40),
    seed=st.integers(0, 99),
)
def test_with_a_budget_for_everything_it_is_full_attention(
    impl: str, name: str, group_size: int, length: int, padding: list[int], num_output: int, seed: int
) -> None:
    model = model_of_group(group_size)
    inputs = prompt(length, 1 + len(padding), tuple(min(width, length - 1) for width in padding), seed)
    output = prompt(num_output, 1 + len(padding), seed=seed + 1)["input_ids"]
    expected = decode(model, inputs, output, None)
    with attach(model, CASES[name][0], impl=impl) as kv_cache:
        got = decode(model, inputs, output, kv_cache)
    kv_cache.check_integrity()
    torch.testing.assert_close(got, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("name", NAMES)
@settings(deadline=None, max_examples=10)
@given(length=st.integers(20, 80), padding=st.integers(1, 19), num_output=st.integers(1, 40), seed=st.integers(0, 99))
def test_a_batch_gives_what_its_rows_give_alone(
    impl: str, name: str, length: int, padding: int, num_output: int, seed: int
) -> None:
    model = model_of_group(4)
    inputs = prompt(length, 2, (padding,), seed)
    output = prompt(num_output, 2, seed=seed + 1)["input_ids"]
    with attach(model, CASES[name][1], impl=impl) as kv_cache:
        together = decode(model, inputs, output, kv_cache)
        kv_cache.check_integrity()
        for row, first in enumerate((padding, 0)):
            kv_cache.reset()
            alone = {key: value[row : row + 1, first:] for key, value in inputs.items()}
            expected = decode(model, alone, output[row : row + 1], kv_cache)
            tolerance = ROUNDED.get(name, 1e-4)
            torch.testing.assert_close(together[row : row + 1], expected, atol=tolerance, rtol=tolerance)


def check_attended(state: KVLayer, length: int) -> None:
    """No token is attended to twice, and none that was not seen."""
    for row in state.attended_positions().tolist():
        places = [place for place in row if place >= 0]
        assert len(set(places)) == len(places)
        assert places and max(places) < length


actions = st.lists(
    st.one_of(
        st.tuples(st.just("decode"), st.integers(1, 25)),
        st.tuples(st.just("prompt"), st.integers(2, 40)),
        st.tuples(st.just("crop"), st.integers(1, 50)),
        st.tuples(st.just("reorder"), st.integers(0, 3)),
    ),
    min_size=1,
    max_size=6,
)


def follow(
    model: PreTrainedModel, kv_cache: LouisKVCache, turns: list[tuple[str, int]], check_budget: int | None = None
) -> torch.Tensor:
    """Take a cache through turns and return the logits of a last step; its state is checked after every turn."""
    generator = torch.Generator().manual_seed(0)

    def feed(num_tokens: int) -> torch.Tensor:
        ids = torch.randint(3, 200, (2, num_tokens), generator=generator)
        return model(input_ids=ids, **passing(model, kv_cache)).logits[:, -1]

    with torch.inference_mode():
        feed(5)
        for action, number in turns:
            if action == "decode":
                for _ in range(number):
                    feed(1)
                    for layer in kv_cache.managed:
                        check_attended(layer.state, layer.seq_length)
                        assert check_budget is None or layer.state.attended <= check_budget
            elif action == "prompt":
                feed(number)
            elif action == "crop":
                kv_cache.crop(-min(number, kv_cache.get_seq_length() - 1))
            else:
                kv_cache.reorder_cache(torch.LongTensor([number // 2, number % 2]))
            kv_cache.check_integrity()
        return feed(1)


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("name", NAMES)
@settings(deadline=None, max_examples=25)
@given(turns=actions)
def test_any_turns_end_where_full_attention_ends(impl: str, name: str, turns: list[tuple[str, int]]) -> None:
    model = model_of_group(4)
    with attach(model, Full()) as kv_cache:
        expected = follow(model, kv_cache, turns)
    with attach(model, CASES[name][0], impl=impl) as kv_cache:
        got = follow(model, kv_cache, turns)
    torch.testing.assert_close(got, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("name", NAMES)
@settings(deadline=None, max_examples=15)
@given(turns=actions)
def test_no_token_is_lost_and_no_budget_exceeded_under_pressure(
    impl: str, name: str, turns: list[tuple[str, int]]
) -> None:
    method = CASES[name][1]
    model = model_of_group(4)
    with attach(model, method, impl=impl) as kv_cache:
        logits = follow(model, kv_cache, turns, check_budget=getattr(method, "budget", None))
        kv_cache.check_integrity()
    assert logits.isfinite().all()


@pytest.mark.parametrize("name", NAMES)
def test_reset_and_rerun_gives_the_same_tokens(name: str) -> None:
    model, inputs = model_of_group(3), prompt(70, 2, (11,))
    with attach(model, CASES[name][1]) as kv_cache:
        first = greedy(model, inputs, 40, **passing(model, kv_cache))
        report = kv_cache.report().to_dict()
        kv_cache.reset()
        second = greedy(model, inputs, 40, **passing(model, kv_cache))
        again = kv_cache.report().to_dict()
    assert torch.equal(first, second)
    for figures in (report, again):
        figures.pop("seconds")
        for layer in figures["layers"]:
            layer.pop("seconds")
    assert report == again


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("name", NAMES)
def test_nothing_is_read_from_memory_that_was_never_written(impl: str, name: str, poisoned_memory: None) -> None:
    model, inputs = model_of_group(4), prompt(70, 2, (11,))
    output = prompt(50, 2, seed=1)["input_ids"]
    with attach(model, CASES[name][1], impl=impl) as kv_cache:
        assert decode(model, inputs, output, kv_cache).isfinite().all()
        kv_cache.check_integrity()


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_dtypes(impl: str, name: str, dtype: torch.dtype) -> None:
    model = tiny("llama", dtype, initializer_range=0.05)
    inputs, output = prompt(40, 2, (7,)), prompt(20, 2, seed=1)["input_ids"]
    expected = decode(model, inputs, output, None)
    with attach(model, CASES[name][0], impl=impl) as kv_cache:
        got = decode(model, inputs, output, kv_cache)
    assert got.dtype == dtype
    # Two orders of summation in the same dtype: a few units in the last place of logits of order 1.
    tolerance = {torch.float32: 1e-4, torch.bfloat16: 5e-2, torch.float16: 1e-2}[dtype]
    torch.testing.assert_close(got, expected, atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("name", NAMES)
def test_the_model_is_left_as_it_was(name: str) -> None:
    model, inputs = model_of_group(4), prompt(20)
    expected = greedy(model, inputs, 10)
    with pytest.raises(ZeroDivisionError), attach(model, CASES[name][1]):
        greedy(model, inputs, 10)
        raise ZeroDivisionError
    assert model.config._attn_implementation == "eager"
    assert not model._forward_pre_hooks
    assert torch.equal(greedy(model, inputs, 10), expected)


@pytest.mark.parametrize("name", CASES)
def test_a_cache_can_be_copied_in_the_middle(name: str) -> None:
    model, inputs = model_of_group(4), prompt(60)
    with attach(model, CASES[name][1]) as kv_cache, torch.no_grad():
        model(**inputs, **passing(model, kv_cache))
        model(torch.tensor([[5]]), **passing(model, kv_cache))
        copy = deepcopy(kv_cache)
        expected = [model(torch.tensor([[token]]), **passing(model, kv_cache)).logits for token in (6, 7)]
        got = [model(torch.tensor([[token]]), **passing(model, copy)).logits for token in (6, 7)]
    assert torch.equal(torch.stack(got), torch.stack(expected))
    copy.check_integrity()
