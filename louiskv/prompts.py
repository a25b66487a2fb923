"""From a text to the ids of a prompt."""

from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedTokenizerBase


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


def encode(tokenizer: PreTrainedTokenizerBase, request: Request) -> list[int]:
    """Ids of a request as the user's first message in the model's chat template; as it is if raw or without one."""
    if request.raw or tokenizer.chat_template is None:
        return list(tokenizer(str(request))["input_ids"])
    message = [{"role": "user", "content": str(request)}]
    rendered: Any = tokenizer.apply_chat_template(message, add_generation_prompt=True, return_dict=True)
    return list(rendered["input_ids"])
