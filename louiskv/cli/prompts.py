"""What the user gave, read and made to fit."""

import sys
from dataclasses import replace
from pathlib import Path

from transformers import PretrainedConfig, PreTrainedTokenizerBase

from louiskv.cli.failures import UsageError
from louiskv.errors import SettingsError
from louiskv.prompts import Request, encode
from louiskv.serving.sizes import bytes_of

# Stands where the middle of a text was cut out.
CUT = "\n[...]\n"


def read_text(source: str) -> str:
    """Text of a file, or of standard input for '-'.

    Raises:
        UsageError: It cannot be read, is not text, or is empty.
    """
    name = "standard input" if source == "-" else source
    try:
        data = sys.stdin.buffer.read() if source == "-" else Path(source).read_bytes()
        text = data.decode()
    except OSError as error:
        raise UsageError(f"{name} cannot be read: {error.strerror}.") from error
    except UnicodeDecodeError as error:
        raise UsageError(f"{name} is not UTF-8 text: {error.reason} at byte {error.start}.") from error
    if not text.strip():
        raise UsageError(f"{name} is empty.")
    return text


def size_of(option: str, text: str | None) -> int | None:
    """Bytes of a size such as 512M or 8G; None for none.

    Raises:
        UsageError: It is no size.
    """
    if text is None:
        return None
    try:
        return bytes_of(option, text)
    except SettingsError as error:
        raise UsageError(str(error)) from error


def room(config: PretrainedConfig, max_new_tokens: int) -> int | None:
    """Most tokens a prompt can have, None if the model has no fixed number of positions.

    Raises:
        SettingsError: The output alone needs more positions than there are.
    """
    positions = getattr(config.get_text_config(decoder=True), "max_position_embeddings", None)
    if positions is None:
        return None
    if max_new_tokens >= positions:
        raise SettingsError(
            f"--max-new-tokens {max_new_tokens} leaves no position for a prompt: the model has {positions}. Give fewer."
        )
    return int(positions) - max_new_tokens


def check_fits(num_tokens: int, limit: int | None, remedy: str) -> None:
    """Raise `SettingsError` if a prompt is longer than `limit`, and name the remedy."""
    if limit is not None and num_tokens > limit:
        raise SettingsError(
            f"The prompt has {num_tokens} tokens, {num_tokens - limit} more than the {limit} positions that the model "
            f"has beside the new tokens. {remedy}"
        )


def truncate(tokenizer: PreTrainedTokenizerBase, request: Request, limit: int | None) -> tuple[list[int], int]:
    """Ids of a request, so much of its text's middle cut out that they fit.

    Returns:
        The ids, and the number of tokens cut.

    Raises:
        SettingsError: There would be nothing left of the text.
    """
    ids = encode(tokenizer, request)
    whole = tokenizer(request.text, add_special_tokens=False)["input_ids"]
    cut = 0
    while limit is not None and len(ids) > limit:
        cut += len(ids) - limit
        if cut >= len(whole):
            check_fits(len(ids), limit, "Cutting the text would leave nothing of it; shorten the question.")
        head = (len(whole) - cut) // 2
        parts = whole[:head], whole[head + cut :]
        shorter = CUT.join(str(tokenizer.decode(part, skip_special_tokens=True)) for part in parts)
        ids = encode(tokenizer, replace(request, text=shorter))
    return ids, cut
