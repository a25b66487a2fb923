"""Streaming and Ctrl-C, without a model."""

import signal

import pytest
import torch

from louiskv.cli.streaming import Interruption, StoppedError, Streamer
from tests.cli.conftest import Loaded

TEXT = "Ça va? 東京 🎉🎈, in  two   lines:\n one  \n\n\tand  an end"


def test_the_pieces_are_the_text_and_no_character_is_torn(loaded: Loaded) -> None:
    _, tokenizer = loaded
    ids = tokenizer(TEXT, add_special_tokens=False)["input_ids"]
    pieces: list[str] = []
    streamer = Streamer(tokenizer, pieces.append)
    streamer.put(torch.tensor([[1, 2, 3]]))
    for token in ids:
        streamer.put(torch.tensor([token]))
    streamer.end()
    assert "".join(pieces) == streamer.text == TEXT
    assert len(pieces) > 10 and not any("\N{REPLACEMENT CHARACTER}" in piece for piece in pieces)
    assert streamer.tokens == ids and len(streamer.times) == len(ids)


def test_special_tokens_are_not_text(loaded: Loaded) -> None:
    _, tokenizer = loaded
    streamer = Streamer(tokenizer, lambda text: None)
    for ids in ([[1]], *tokenizer("Yes.<|im_end|>", add_special_tokens=False)["input_ids"]):
        streamer.put(torch.tensor(ids))
    streamer.end()
    assert streamer.text == "Yes."


def test_the_first_interrupt_is_a_wish_and_the_second_is_not_held_up() -> None:
    before = signal.getsignal(signal.SIGINT)
    with Interruption() as interruption:
        interruption.check()
        assert not interruption(torch.zeros(2, 3), torch.zeros(2, 3)).any()
        signal.raise_signal(signal.SIGINT)
        assert interruption.requested
        assert interruption(torch.zeros(2, 3), torch.zeros(2, 3)).tolist() == [True, True]
        with pytest.raises(StoppedError):
            interruption.check()
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before
