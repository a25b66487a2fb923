"""From what the user gave to the ids of a prompt."""

import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from transformers import PretrainedConfig, PreTrainedTokenizerBase

from louiskv.cli.failures import UsageError
from louiskv.errors import SettingsError

# Stands where the middle of a text was cut out.
CUT = "\n[...]\n"


@dataclass(frozen=True)
class Request:
    """What a model is asked.

    Attributes:
        text: Prompt or document.
        question: What stands after a document.
        raw: Whether to leave out the chat template.
    """

    text: str
    question: str | None = None
    raw: bool = False

    def __str__(self) -> str:
        return self.text if self.question is None else f"{self.text.strip()}\n\n{self.question}"


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


def encode(tokenizer: PreTrainedTokenizerBase, request: Request) -> list[int]:
    """Ids of a request as the user's first message in the model's chat template; as it is if raw or without one."""
    if request.raw or tokenizer.chat_template is None:
        return list(tokenizer(str(request))["input_ids"])
    message = [{"role": "user", "content": str(request)}]
    rendered: Any = tokenizer.apply_chat_template(message, add_generation_prompt=True, return_dict=True)
    return list(rendered["input_ids"])


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
