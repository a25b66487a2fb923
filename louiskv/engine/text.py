"""Text from tokens as they come: whole characters only, and nothing of a text that ends the answer."""

from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

# Tokens of the prompt that the first ones of the answer are decoded behind: some tokenizers drop a leading space.
CONTEXT = 6
# What an incomplete character is decoded to.
INCOMPLETE = "\ufffd"
# Tokens without a whole character at their end, of which most are no characters at all; a few may become one.
MAX_HELD, MAX_PARTS = 16, 3


class Text:
    """The text of one answer.

    Attributes:
        stopped: Whether a stop text has come.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, prompt: Sequence[int], stop: tuple[str, ...]) -> None:
        self.tokenizer, self.stop = tokenizer, stop
        self.stopped = False
        self._ids = list(prompt[-CONTEXT:])
        # What is before `_begun` is settled; what is before `_read` was handed on.
        self._begun, self._read = 0, len(self._ids)
        self._held = ""

    def push(self, token_id: int) -> str:
        """Take in a token; returns what may be shown from now on."""
        self._ids.append(token_id)
        return self._release(self._decoded(last=False))

    def finish(self) -> str:
        """What is left when no more tokens come."""
        if self.stopped:
            return ""
        shown = self._release(self._decoded(last=True))
        rest, self._held = ("" if self.stopped else self._held), ""
        return shown + rest

    def _decoded(self, last: bool) -> str:
        """The text of the tokens that were not handed on; nothing while a character is not complete."""
        end = len(self._ids)
        before = self._decode(self._ids[self._begun : self._read])
        text = self._decode(self._ids[self._begun :])
        if text.endswith(INCOMPLETE) and not last:
            if end - self._read < MAX_HELD:
                return ""
            end -= MAX_PARTS
            text = self._decode(self._ids[self._begun : end])
        if len(text) <= len(before):
            return ""
        self._begun, self._read = self._read, end
        return text[len(before) :]

    def _decode(self, ids: list[int]) -> str:
        text = self.tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        assert isinstance(text, str)
        return text

    def _release(self, text: str) -> str:
        """Add text to what is held back; returns what of it cannot be the start of a stop text."""
        self._held += text
        places = [place for place in map(self._held.find, self.stop) if place >= 0]
        if places:
            self.stopped = True
            return self._held[: min(places)]
        keep = max((_overlap(self._held, each) for each in self.stop), default=0)
        shown, self._held = self._held[: len(self._held) - keep], self._held[len(self._held) - keep :]
        return shown


def _overlap(text: str, stop: str) -> int:
    """How many of the last characters of a text are the first ones of a stop text."""
    return next((size for size in range(min(len(text), len(stop) - 1), 0, -1) if text.endswith(stop[:size])), 0)
