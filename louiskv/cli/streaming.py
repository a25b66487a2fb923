"""What happens while a model generates: text goes out as it comes, and Ctrl-C is taken at a safe moment."""

import signal
import threading
import time
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase, StoppingCriteria
from transformers.generation.streamers import BaseStreamer


class StoppedError(Exception):
    """Generation was ended by Ctrl-C before its first token."""


class Streamer(BaseStreamer):
    """Decodes tokens as they come and notes when.

    Attributes:
        on_first_token: Called when the prompt is done.
        tokens: Tokens generated.
        times: When each of them came, by `time.perf_counter`.
        text: Text of the tokens, as far as it is complete.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, write: Callable[[str], None]) -> None:
        self.tokenizer = tokenizer
        self.write = write
        self.on_first_token: Callable[[], None] = lambda: None
        self.tokens: list[int] = []
        self.times: list[float] = []
        self.text = ""
        self._prompt_is_over = False
        # Tokens before `_context` are not decoded again; those before `_told` have been written.
        self._context = self._told = 0

    def put(self, value: Tensor) -> None:
        """Take the prompt, then one token at a time."""
        if not self._prompt_is_over:
            self._prompt_is_over = True
            return
        if not self.times:
            self.on_first_token()
        self.times.append(time.perf_counter())
        self.tokens.extend(value.flatten().tolist())
        text = self._new_text()
        # A character of several tokens is not complete yet.
        if not text.endswith("\N{REPLACEMENT CHARACTER}"):
            self._tell(text)

    def end(self) -> None:
        """Write what is left."""
        self._tell(self._new_text())

    def _new_text(self) -> str:
        # Decoded with the tokens before: a tokenizer may strip the space at the start of a text.
        known = self._decode(self.tokens[self._context : self._told])
        return self._decode(self.tokens[self._context :])[len(known) :]

    def _decode(self, tokens: list[int]) -> str:
        return str(self.tokenizer.decode(tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False))

    def _tell(self, text: str) -> None:
        self._context, self._told = self._told, len(self.tokens)
        self.text += text
        if text:
            self.write(text)


class Interruption(StoppingCriteria):
    """Turns the first Ctrl-C into a wish that is granted between two layers or steps; a second one is not held up.

    Attributes:
        requested: Whether Ctrl-C was pressed.
    """

    def __init__(self) -> None:
        self.requested = False

    def __enter__(self) -> "Interruption":
        # Only the main thread may take signals.
        self._takes_signals = threading.current_thread() is threading.main_thread()
        if self._takes_signals:
            self._before = signal.signal(signal.SIGINT, self._request)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._takes_signals:
            signal.signal(signal.SIGINT, self._before)

    def __call__(self, input_ids: Tensor, scores: Tensor, **kwargs: Any) -> Any:
        """Whether each sequence is to stop."""
        return torch.full((len(input_ids),), self.requested, device=input_ids.device)

    def check(self) -> None:
        """Raise `StoppedError` if it was asked for."""
        if self.requested:
            raise StoppedError

    def _request(self, number: int, frame: FrameType | None) -> None:
        if self.requested:
            raise KeyboardInterrupt
        self.requested = True
