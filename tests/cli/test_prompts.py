"""Prompts: reading, the chat template, and cutting what is too long."""

from pathlib import Path

import pytest

from louiskv import SettingsError
from louiskv.cli.failures import UsageError
from louiskv.cli.prompts import read_text, room, truncate
from louiskv.prompts import Request, encode
from tests.cli.conftest import Loaded


def test_the_question_stands_after_the_document_in_the_users_turn(loaded: Loaded) -> None:
    _, tokenizer = loaded
    text = tokenizer.decode(encode(tokenizer, Request("A document.\n\n", "A question?")))
    assert "<|im_start|>user\nA document.\n\nA question?<|im_end|>\n<|im_start|>assistant\n" in text


def test_raw_text_is_left_as_it_is(loaded: Loaded) -> None:
    _, tokenizer = loaded
    assert tokenizer.decode(encode(tokenizer, Request("  A text", raw=True))) == "  A text"


@pytest.mark.parametrize("question", [None, "What is it?"])
@pytest.mark.parametrize("raw", [False, True])
def test_the_middle_is_cut_so_that_just_as_much_fits(loaded: Loaded, question: str | None, raw: bool) -> None:
    _, tokenizer = loaded
    document = " ".join(f"word{number}" for number in range(500))
    limit = 300
    ids, cut = truncate(tokenizer, Request(document, question, raw), limit)
    text = str(tokenizer.decode(ids))
    assert limit - 10 <= len(ids) <= limit
    assert "word0 " in text and "word499" in text and "word250 " not in text and "\n[...]\n" in text
    assert question is None or question in text
    assert cut > 0


def test_what_fits_is_not_cut(loaded: Loaded) -> None:
    _, tokenizer = loaded
    request = Request("A short text.")
    assert truncate(tokenizer, request, 300) == (encode(tokenizer, request), 0)
    assert truncate(tokenizer, request, None) == (encode(tokenizer, request), 0)


def test_a_question_that_is_too_long_cannot_be_cut(loaded: Loaded) -> None:
    _, tokenizer = loaded
    with pytest.raises(SettingsError, match="leave nothing of it"):
        truncate(tokenizer, Request("A document.", "why " * 500), 300)


def test_the_output_needs_positions_too(loaded: Loaded) -> None:
    model, _ = loaded
    assert room(model.config, 192) == 8000
    with pytest.raises(SettingsError, match="--max-new-tokens 8192 leaves no position.*8192"):
        room(model.config, 8192)


@pytest.mark.parametrize(
    "content, message", [(None, "cannot be read: No such file"), (b"  \n", "is empty"), (b"caf\xe9 au lait", "UTF-8")]
)
def test_files_that_are_no_text_are_refused(tmp_path: Path, content: bytes | None, message: str) -> None:
    file = tmp_path / "document"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(UsageError, match=message):
        read_text(str(file))
    with pytest.raises(UsageError, match="Is a directory"):
        read_text(str(tmp_path))
