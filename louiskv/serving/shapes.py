"""Answers in the shapes of OpenAI's API, made of its own types: whole, and in chunks."""

import time
import uuid
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from openai.types import Completion, CompletionChoice, CompletionUsage
from openai.types.chat import ChatCompletion, ChatCompletionChunk, ChatCompletionMessage, ChatCompletionTokenLogprob
from openai.types.chat.chat_completion import Choice, ChoiceLogprobs
from openai.types.chat.chat_completion_chunk import Choice as ChunkChoice
from openai.types.chat.chat_completion_chunk import ChoiceDelta
from openai.types.chat.chat_completion_token_logprob import TopLogprob
from openai.types.completion_choice import Logprobs
from openai.types.completion_usage import PromptTokensDetails
from pydantic import BaseModel

from louiskv.engine import Logprob, Usage

# What is decoded to where a token is a part of a character.
INCOMPLETE = "\ufffd"
Decode = Callable[[int], str]


@dataclass
class Said:
    """One of the answers to a request, so far."""

    text: str = ""
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[Logprob] = field(default_factory=list)
    finish_reason: str | None = None
    usage: Usage = field(default_factory=lambda: Usage(0, 0, 0))


@dataclass
class Shape(ABC):
    """Makes objects of OpenAI's types for one request.

    `model_construct` takes a finish reason that OpenAI does not have: "cancelled".

    Attributes:
        model: Name that the client knows it by.
        token: The text of a token.
        n: Answers to each prompt.
        own: What is told beside OpenAI's fields.
    """

    model: str
    token: Decode
    n: int = 1
    own: dict[str, Any] | None = None
    id: str = field(init=False)
    created: int = field(default_factory=lambda: int(time.time()))

    prefix = ""

    def __post_init__(self) -> None:
        """Choose an id."""
        self.id = f"{self.prefix}-{uuid.uuid4().hex}"

    @abstractmethod
    def whole(self, said: Sequence[Said]) -> BaseModel:
        """All answers at once."""

    @abstractmethod
    def opening(self, index: int) -> BaseModel | None:
        """What comes before the first text of an answer."""

    @abstractmethod
    def chunk(self, index: int, said: Said, text: str, logprobs: Sequence[Logprob], **more: Any) -> BaseModel:
        """A part of an answer, with those tokens' logarithms; `said` is what came before."""

    @abstractmethod
    def closing(self, index: int, finish_reason: str) -> BaseModel:
        """The end of an answer."""

    @abstractmethod
    def counted(self, said: Sequence[Said]) -> BaseModel:
        """The last chunk, with what all took."""

    def _usage(self, said: Sequence[Said]) -> CompletionUsage:
        """What all took; a prompt counts once for its `n` answers."""
        usages = [each.usage for each in said]
        groups = [usages[start : start + self.n] for start in range(0, len(usages), self.n)]
        prompt = sum(group[0].prompt_tokens for group in groups)
        completion = sum(usage.completion_tokens for usage in usages)
        cached = sum(max(usage.cached_tokens for usage in group) for group in groups)
        return CompletionUsage(
            prompt_tokens=prompt,
            completion_tokens=completion,
            total_tokens=prompt + completion,
            prompt_tokens_details=PromptTokensDetails(cached_tokens=cached),
        )

    def _head(self, kind: str, **more: Any) -> dict[str, Any]:
        own = {} if self.own is None else {"louiskv": self.own}
        return {"id": self.id, "object": kind, "created": self.created, "model": self.model, **own, **more}


class ChatShape(Shape):
    """Of /v1/chat/completions."""

    prefix = "chatcmpl"

    def whole(self, said: Sequence[Said]) -> BaseModel:
        """A `chat.completion`."""
        choices = [
            Choice.model_construct(
                index=index,
                message=ChatCompletionMessage(role="assistant", content=each.text, refusal=None),
                logprobs=ChoiceLogprobs(content=self._logprobs(each.logprobs), refusal=None) if each.logprobs else None,
                finish_reason=each.finish_reason,
            )
            for index, each in enumerate(said)
        ]
        return ChatCompletion.model_construct(**self._head("chat.completion", choices=choices, usage=self._usage(said)))

    def opening(self, index: int) -> BaseModel:
        """The role."""
        return self._chunk(index, ChoiceDelta(role="assistant", content=""), None)

    def chunk(self, index: int, said: Said, text: str, logprobs: Sequence[Logprob], **more: Any) -> BaseModel:
        """A part of the message."""
        told = {"content": self._logprobs(logprobs), "refusal": None} if logprobs else None
        return self._chunk(index, ChoiceDelta(content=text), None, told, **more)

    def closing(self, index: int, finish_reason: str) -> BaseModel:
        """No more text."""
        return self._chunk(index, ChoiceDelta(), finish_reason)

    def counted(self, said: Sequence[Said]) -> BaseModel:
        """No choice, but the usage."""
        head = self._head("chat.completion.chunk", choices=[], usage=self._usage(said))
        return ChatCompletionChunk.model_construct(**head)

    def _chunk(
        self,
        index: int,
        delta: ChoiceDelta,
        finish_reason: str | None,
        logprobs: dict[str, Any] | None = None,
        **more: Any,
    ) -> BaseModel:
        choice = ChunkChoice.model_construct(
            index=index,
            delta=delta,
            logprobs=logprobs,
            finish_reason=finish_reason,
        )
        return ChatCompletionChunk.model_construct(**self._head("chat.completion.chunk", choices=[choice], **more))

    def _logprobs(self, logprobs: Sequence[Logprob]) -> list[ChatCompletionTokenLogprob]:
        return [
            ChatCompletionTokenLogprob(
                **self._logprob(each.token_id, each.logprob),
                top_logprobs=[TopLogprob(**self._logprob(token, value)) for token, value in each.best],
            )
            for each in logprobs
        ]

    def _logprob(self, token: int, logprob: float) -> dict[str, Any]:
        text = self.token(token)
        return {"token": text, "logprob": logprob, "bytes": None if INCOMPLETE in text else list(text.encode())}


class CompletionShape(Shape):
    """Of /v1/completions."""

    prefix = "cmpl"

    def whole(self, said: Sequence[Said]) -> BaseModel:
        """A `text_completion`."""
        choices = [
            self._choice(index, each.text, each.finish_reason, self._logprobs(each.logprobs, 0))
            for index, each in enumerate(said)
        ]
        return Completion.model_construct(**self._head("text_completion", choices=choices, usage=self._usage(said)))

    def opening(self, index: int) -> None:
        """Nothing."""

    def chunk(self, index: int, said: Said, text: str, logprobs: Sequence[Logprob], **more: Any) -> BaseModel:
        """A part of the text."""
        choice = self._choice(index, text, None, self._logprobs(logprobs, len(said.text)))
        return Completion.model_construct(**self._head("text_completion", choices=[choice], **more))

    def closing(self, index: int, finish_reason: str) -> BaseModel:
        """No more text."""
        head = self._head("text_completion", choices=[self._choice(index, "", finish_reason, None)])
        return Completion.model_construct(**head)

    def counted(self, said: Sequence[Said]) -> BaseModel:
        """No choice, but the usage."""
        return Completion.model_construct(**self._head("text_completion", choices=[], usage=self._usage(said)))

    @staticmethod
    def _choice(index: int, text: str, finish_reason: str | None, logprobs: Logprobs | None) -> CompletionChoice:
        return CompletionChoice.model_construct(
            index=index,
            text=text,
            logprobs=logprobs,
            finish_reason=finish_reason,
        )

    def _logprobs(self, logprobs: Sequence[Logprob], offset: int) -> Logprobs | None:
        if not logprobs:
            return None
        tokens, offsets = [self.token(each.token_id) for each in logprobs], list[int]()
        for text in tokens:
            offsets.append(offset)
            offset += len(text)
        return Logprobs(
            tokens=tokens,
            token_logprobs=[each.logprob for each in logprobs],
            top_logprobs=[{self.token(token): value for token, value in each.best} for each in logprobs],
            text_offset=offsets,
        )
