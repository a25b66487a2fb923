"""What is decoded: real text, repeated where there is too little, and apart in a batch."""

import pytest
import torch
from transformers import PreTrainedTokenizerBase

from louiskv import UnsupportedModelError
from louiskv.bench.material import HEAD, ends, prefill, text_ids
from tests.families import tiny


def test_contexts_are_real_text_and_then_its_repetition(tokenizer: PreTrainedTokenizerBase) -> None:
    model = tiny("llama", max_position_embeddings=128)
    heard: list[tuple[int, int]] = []
    short, long = prefill(model, tokenizer, [(50, 1), (300, 1)], 8, lambda *done: heard.append(done))
    assert heard == [(120, 120)]
    assert (short.context, short.num_real, short.ends) == (50, 50, (50,))
    assert (long.context, long.num_real, long.ends) == (300, 120, (120,))
    keys = long.layer(0)[0]
    assert keys.shape == (1, 2, 300, 8)
    assert torch.equal(keys[:, :, :50], short.layer(0)[0])
    repeated, real = keys[:, :, 120:240], keys[:, :, :120]
    assert not torch.equal(repeated, real)
    assert (repeated - real).std() < 0.2 * real.std()
    ids = text_ids(tokenizer, 300)
    assert torch.equal(short.continuation, ids[:, 50:58])
    assert torch.equal(long.continuation, ids[:, 120:128])


def test_sequences_of_a_batch_end_at_different_places_of_the_text(tokenizer: PreTrainedTokenizerBase) -> None:
    model = tiny("llama", max_position_embeddings=128)
    (start,) = prefill(model, tokenizer, [(40, 3)], 8)
    assert (start.batch, start.num_real, start.ends) == (3, 40, (40, 80, 120))
    keys, values = start.layer(1)
    assert keys.shape == values.shape == (3, 2, 40, 8)
    for states, real in zip((keys, values), start.real[1], strict=True):
        for row, end in enumerate(start.ends):
            assert torch.equal(states[row, :, :HEAD], real[0, :, :HEAD])
            assert torch.equal(states[row, :, HEAD:], real[0, :, end - 40 + HEAD : end])
    ids = text_ids(tokenizer, 200)
    assert torch.equal(start.continuation, torch.cat([ids[:, end : end + 8] for end in start.ends]))


def test_without_room_a_batch_is_the_same_text_with_noise_and_goes_on_differently(
    tokenizer: PreTrainedTokenizerBase,
) -> None:
    model = tiny("llama", max_position_embeddings=128)
    (start,) = prefill(model, tokenizer, [(200, 2)], 8)
    assert start.ends == (120, 120)
    first, second = start.layer(0)[0]
    assert torch.equal(first[:, :120], start.real[0][0][0])
    assert not torch.equal(first, second)
    assert (first - second).std() < 0.3 * first.std()
    assert torch.equal(start.continuation.flatten(), text_ids(tokenizer, 136)[0, 120:])
    assert start.token_bytes == 4 * 2 * 2 * 8 * 4


def test_sequences_lie_as_far_apart_as_there_is_room() -> None:
    assert ends(100, 1, 1000) == (100,)
    assert ends(100, 3, 1000) == (100, 200, 300)
    assert ends(100, 3, 150) == (100, 125, 150)
    assert ends(100, 3, 101) == (100, 100, 100)
    assert ends(500, 2, 101) == (101, 101)


def test_a_model_with_other_layers_is_refused(tokenizer: PreTrainedTokenizerBase) -> None:
    with pytest.raises(UnsupportedModelError, match="bench needs full attention"):
        prefill(tiny("gemma2"), tokenizer, [(50, 1)], 4)
