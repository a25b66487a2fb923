"""`louiskv.generate` and the loop that replays steps, against transformers' own generation."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers.generation.streamers import BaseStreamer

from louiskv import Full, FullOffloaded, LouisKV, LouisKVPlus, Method, Quest, SettingsError, attach, generate
from louiskv.cache import LouisKVCache, passing
from louiskv.captured import EagerStep, why_not
from louiskv.generation import _Loop
from louiskv.methods.retrieval import Retrieval
from louiskv.ops import ragged
from louiskv.state import tensors_of
from louiskv.store import pool
from louiskv.units.pages import Pages
from tests.families import greedy, prompt, tiny

METHOD = LouisKV(budget=48, sink=4, window=16, unit_size=4, dense_layers=1)
BY_QUERY_HEAD = Retrieval(budget=48, sink=4, window=16, units=Pages(4), dense_layers=1, per_query_head=True)


class Heard(BaseStreamer):
    """Notes the tokens that come."""

    def __init__(self) -> None:
        self.tokens: list[list[int]] = []
        self.ended = False

    def put(self, value: Tensor) -> None:
        self.tokens.append(value.tolist())

    def end(self) -> None:
        self.ended = True


def looped(method: Method, inputs: dict[str, Any], heard: Heard | None = None, **settings: Any) -> Tensor:
    """What the loop generates, with steps that run as they are."""
    model: Any = tiny("llama")
    with attach(model, method) as kv_cache:
        loop = _Loop(kv_cache, EagerStep, heard)
        torch.manual_seed(0)
        out: Tensor = model.generate(**inputs, **settings, **passing(model, kv_cache), custom_generate=loop)
        kv_cache.check_integrity()
    return out


@pytest.mark.parametrize("method", [Full(), METHOD, LouisKVPlus(budget=48, sink=4, window=16)], ids=str)
@pytest.mark.parametrize("padding", [(), (7,)], ids=["whole", "padded"])
def test_the_loop_generates_what_transformers_does(method: Method, padding: tuple[int, ...]) -> None:
    inputs = prompt(60, 2, padding)
    settings: dict[str, Any] = {"max_new_tokens": 30, "do_sample": False, "suppress_tokens": [0]}
    model: Any = tiny("llama")
    with attach(model, method):
        expected = model.generate(**inputs, **settings)
    assert torch.equal(looped(method, inputs, **settings), expected)


@pytest.mark.parametrize("method", [METHOD, BY_QUERY_HEAD, FullOffloaded()], ids=str)
def test_chunks_of_a_prompt_find_their_room(method: Method, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []

    def grown(buffer: Tensor, capacity: int, *others: Any) -> Tensor:
        sizes.append(capacity)
        return ragged.grown(buffer, capacity, *others)

    monkeypatch.setattr(pool, "MIN_ROOM", 1)
    monkeypatch.setattr(pool, "grown", grown)
    settings: dict[str, Any] = {"max_new_tokens": 20, "do_sample": False, "prefill_chunk_size": 16}
    looped(method, prompt(200), **settings)
    # Once in each layer: keys with values, and positions.
    layers = len(sizes) // 2
    assert 3 <= layers <= 4 and sizes == [220] * 2 * layers
    monkeypatch.setattr(LouisKVCache, "expect", lambda kv_cache, num_tokens: None)
    looped(method, prompt(200), **settings)
    assert len(sizes) > 10 * layers


def test_the_loop_samples_and_processes_as_transformers_does() -> None:
    inputs = prompt(40, 2)
    model: Any = tiny("llama")
    settings: dict[str, Any] = {
        "max_new_tokens": 20,
        "do_sample": True,
        "top_k": 5,
        "temperature": 0.8,
        "repetition_penalty": 1.3,
    }
    with attach(model, METHOD):
        torch.manual_seed(0)
        expected = model.generate(**inputs, **settings)
    assert torch.equal(looped(METHOD, inputs, **settings), expected)


def test_sequences_end_one_by_one_and_their_tokens_are_streamed() -> None:
    inputs = prompt(40, 2)
    model: Any = tiny("llama")
    settings: dict[str, Any] = {"max_new_tokens": 25, "do_sample": False, "suppress_tokens": [0]}
    with attach(model, METHOD):
        free = model.generate(**inputs, **settings)
    # An end that the first sequence meets early, and the second later or never.
    settings |= {"eos_token_id": int(free[0, 45]), "pad_token_id": 0}
    with attach(model, METHOD):
        expected = model.generate(**inputs, **settings)
    heard = Heard()
    got = looped(METHOD, inputs, heard, **settings)
    assert torch.equal(got, expected)
    assert heard.tokens[0] == inputs["input_ids"].tolist()
    assert torch.tensor(heard.tokens[1:]).T.tolist() == got[:, 40:].tolist()
    assert heard.ended


def test_a_prompt_in_chunks_and_a_conversation_that_goes_on() -> None:
    model: Any = tiny("llama")
    inputs = prompt(70)
    settings: dict[str, Any] = {"max_new_tokens": 12, "do_sample": False, "suppress_tokens": [0]}
    expected: list[Tensor] = []
    got: list[Tensor] = []
    for said, own in ((expected, False), (got, True)):
        with attach(model, METHOD) as kv_cache:
            told = {**passing(model, kv_cache), **settings}
            told |= {"custom_generate": _Loop(kv_cache, EagerStep, None)} if own else {}
            # In chunks at first only: transformers 5.17 itself takes no chunks on top of a cache in use.
            first = model.generate(inputs["input_ids"], prefill_chunk_size=32, **told)
            again = torch.cat([first, prompt(9, seed=3)["input_ids"]], dim=1)
            said += [first, model.generate(again, attention_mask=torch.ones_like(again), **told)]
    assert all(torch.equal(*pair) for pair in zip(expected, got, strict=True))


def test_generate_says_why_it_captured_nothing() -> None:
    inputs: dict[str, Any] = {**prompt(50, 2)}
    model: Any = tiny("llama")
    done = generate(model, METHOD, **inputs, max_new_tokens=12, do_sample=False, suppress_tokens=[0])
    with attach(model, METHOD) as kv_cache:
        expected = greedy(model, inputs, 12, **passing(model, kv_cache))
    assert torch.equal(done.sequences[:, 50:], expected[:, -12:])
    assert done.report.output_tokens == 2 * 11
    if not torch.cuda.is_available():
        assert done.eager == "the model is on cpu, and CUDA graphs need a GPU"
        with pytest.raises(SettingsError, match=r"graph=True is not possible: the model is on cpu.*graph=None"):
            generate(model, METHOD, **inputs, graph=True, max_new_tokens=2)


@pytest.mark.parametrize("name", ["cache", "past_key_values"])
def test_a_cache_of_ones_own_is_refused(name: str) -> None:
    model: Any = tiny("llama")
    other = LouisKVCache(model.config, METHOD)
    with pytest.raises(SettingsError, match=f"{name} is not allowed.*louiskv.attach"):
        generate(model, METHOD, **dict[str, Any](prompt(9)), **{name: other})  # type: ignore[arg-type]


def test_beams_are_refused_by_the_loop() -> None:
    with pytest.raises(SettingsError, match="num_beams=2 is not allowed"):
        looped(METHOD, prompt(9), num_beams=2, max_new_tokens=2)


def reachable(thing: object, seen: set[int]) -> Iterator[Tensor]:
    """All tensors that can be reached from an object, by whatever way."""
    if id(thing) in seen:
        return
    seen.add(id(thing))
    if isinstance(thing, Tensor):
        yield thing
    parts = thing if isinstance(thing, list | tuple | set) else thing.values() if isinstance(thing, dict) else ()
    for part in (*parts, *getattr(thing, "__dict__", {}).values()):
        yield from reachable(part, seen)


@pytest.mark.parametrize(
    "method",
    [Full(), METHOD, LouisKVPlus(budget=48, sink=4, window=16), Quest(budget=48, page_size=8)],
    ids=lambda method: type(method).__name__,
)
def test_all_that_a_step_may_set_anew_is_found(method: Method) -> None:
    model: Any = tiny("llama")
    with attach(model, method) as kv_cache, torch.no_grad():
        model(**prompt(60), **passing(model, kv_cache), logits_to_keep=1)
        step = EagerStep(model, kv_cache, torch.tensor([59]))
        for _ in range(20):
            step.run(torch.tensor([5]))
        found = {id(tensor) for _, _, tensor in tensors_of([layer.state for layer in kv_cache.managed])}
        for layer in kv_cache.managed:
            assert layer.state.waits_for_nothing
            for tensor in reachable(layer.state, set()):
                assert id(tensor) in found


def test_why_steps_of_a_model_are_not_captured() -> None:
    model: Any = tiny("llama")
    assert why_not(model, LouisKVCache(model.config, METHOD)) == "the model is on cpu, and CUDA graphs need a GPU"
