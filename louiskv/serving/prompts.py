"""From messages and texts to token ids, and from the ids of an answer to a turn that can be gone on from."""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from threading import Lock
from typing import Any

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from louiskv.serving.errors import ApiError
from louiskv.serving.messages import Message
from louiskv.serving.transcripts import Transcripts, Turn

# Tokens of the prompt that an answer is decoded behind: some tokenizers drop a leading space.
CONTEXT = 6
# Tokens that a stop text may have cut off.
MAX_CUT = 64


@dataclass(frozen=True)
class Prompt:
    """What a model goes on from.

    Attributes:
        token_ids: Its tokens.
        text: What they were made of; None for tokens, or a text that is no chat.
    """

    token_ids: Sequence[int]
    text: str | None = None


class Prompts:
    """A tokenizer with what was said; for any thread.

    Attributes:
        tokenizer: Of its own.
        end_tokens: Tokens that end an answer.
        transcripts: What was said.
        longest_token: Characters of a token at the most.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, end_tokens: frozenset[int]) -> None:
        # A tokenizer of its own: encoding changes its state, and the engine decodes with the other one.
        self.tokenizer, self.end_tokens = copy.deepcopy(tokenizer), end_tokens
        self.transcripts = Transcripts()
        # So long at the most, that a long text need not be made into tokens to know that it has too many.
        self.longest_token = max(map(len, self.tokenizer.get_vocab()))
        self._lock = Lock()

    def of_text(self, text: str) -> Prompt:
        """A plain text, with what the tokenizer puts before it."""
        with self._lock:
            return Prompt(list(self.tokenizer(text)["input_ids"]))

    def of_chat(self, messages: list[Message], remembered: bool = True) -> Prompt:
        """Messages by the model's chat template, up to where its answer begins.

        Args:
            messages: All of the chat.
            remembered: Whether earlier answers are made of the tokens that they were given in, and not of their text.

        Raises:
            ApiError: 400; there is no template, or it does not take these messages.
        """
        answers = [message["content"] for message in messages if message["role"] == "assistant"]
        with self._lock:
            rendered = self._rendered(messages)
            found = self.transcripts.find(rendered, answers) if remembered else None
            if found is None:
                return Prompt(self._ids(rendered), rendered)
            turn, rest = found
            return Prompt([*turn.token_ids, *self._following(rest)], rendered)

    def keep(self, prompt: Prompt, said: str, token_ids: Sequence[int]) -> None:
        """Remember the answer to a chat.

        Args:
            prompt: What was asked.
            said: The text of the answer.
            token_ids: Its tokens, the one that ended it included.
        """
        if prompt.text is None:
            return
        ids = list(token_ids)
        with self._lock:
            if ids and ids[-1] in self.end_tokens:
                ids.pop()
            # Of a stop text the last tokens may hold more than was said.
            for _ in range(min(MAX_CUT, len(ids)) + 1):
                answer = self._text(prompt.token_ids, ids)
                if said.startswith(answer):
                    self.transcripts.keep(Turn(prompt.text, said, answer, [*prompt.token_ids, *ids]))
                    return
                ids.pop()

    def token(self, token_id: int) -> str:
        """The text of one token."""
        return self._decoded([token_id], skip_special=False)

    def text(self, token_ids: list[int]) -> str:
        """The text of tokens, special ones included."""
        return self._decoded(token_ids, skip_special=False)

    def _rendered(self, messages: list[Message]) -> str:
        if self.tokenizer.chat_template is None:
            raise ApiError(
                400, "The model has no chat template: use /v1/completions.", param="messages", code="no_chat_template"
            )
        try:
            return str(self.tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False))
        except TemplateError as error:
            message = f"The model's chat template does not take these messages: {error}."
            raise ApiError(400, message, param="messages", code="invalid_value") from error

    def _ids(self, text: str) -> list[int]:
        # The template has brought all special tokens.
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def _following(self, text: str) -> list[int]:
        """Ids of a text in the middle of another one: some tokenizers put a space before a text that begins."""
        for anchor in (self.tokenizer.eos_token, self.tokenizer.bos_token):
            ids = self._ids(f"{anchor}{text}") if anchor else []
            if ids and ids[0] == self.tokenizer.convert_tokens_to_ids(anchor):
                return ids[1:]
        return self._ids(text)

    def _text(self, before: Sequence[int], ids: list[int]) -> str:
        context = list(before[-CONTEXT:])
        return self._decoded([*context, *ids])[len(self._decoded(context)) :]

    def _decoded(self, ids: list[int], skip_special: bool = True) -> str:
        text: Any = self.tokenizer.decode(ids, skip_special_tokens=skip_special, clean_up_tokenization_spaces=False)
        return str(text)
