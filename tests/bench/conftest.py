"""A tokenizer that knows letters only."""

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerBase:
    letters = {letter: number for number, letter in enumerate(map(chr, range(32, 127)), start=3)}
    plain = Tokenizer(models.WordLevel({"?": 0, **letters}, unk_token="?"))
    plain.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    return PreTrainedTokenizerFast(tokenizer_object=plain)
