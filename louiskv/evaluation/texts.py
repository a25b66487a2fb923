"""What tasks hide their facts in: real prose, cut to length."""

import hashlib
import random
from collections.abc import Sequence
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from pydoc_data.topics import topics

from transformers import PreTrainedTokenizerBase

from louiskv.errors import SettingsError

# Tokens that a prompt may have fewer than half of what was asked for.
SPARE = 100


class Haystack:
    """Paragraphs of real text with the number of tokens of each.

    Attributes:
        name: Where the text comes from.
        digest: Tells it from another text of that name.
        paragraphs: The paragraphs.
    """

    def __init__(self, text: str, tokenizer: PreTrainedTokenizerBase, name: str) -> None:
        self.name = name
        self.digest = hashlib.sha256(text.encode()).hexdigest()[:16]
        self.paragraphs = [part.strip() for part in text.split("\n\n") if part.strip()]
        self._tokenizer = tokenizer

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerBase, path: Path | None = None) -> "Haystack":
        """Text of a file, or Python's own documentation, which every Python has.

        Raises:
            SettingsError: The file cannot be read, or holds no text.
        """
        if path is None:
            return cls("\n\n".join(topics.values()), tokenizer, "pydoc_data.topics")
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise SettingsError(f"The text {path} cannot be read: {error}. Give a file of plain UTF-8 text.") from error
        if not text.strip():
            raise SettingsError(f"The text {path} is empty. Give a file of plain UTF-8 text.")
        return cls(text, tokenizer, path.name)

    @cached_property
    def counts(self) -> list[int]:
        """Tokens of each paragraph, its break included."""
        parts = [f"{paragraph}\n\n" for paragraph in self.paragraphs]
        return [len(ids) for ids in self._tokenizer(parts, add_special_tokens=False)["input_ids"]]

    def count(self, text: str) -> int:
        """Tokens of a text."""
        return len(self._tokenizer(text, add_special_tokens=False)["input_ids"])

    def split(self, share: float) -> "tuple[Haystack, Haystack]":
        """The beginning of the text, and the last `share` of its tokens without what the beginning has as well."""
        ends, most = accumulate(self.counts), (1 - share) * sum(self.counts)
        beginning = [paragraph for paragraph, end in zip(self.paragraphs, ends, strict=True) if end <= most]
        known = set(beginning)
        rest = [paragraph for paragraph in self.paragraphs[len(beginning) :] if paragraph not in known]
        parts = {"beginning": beginning, "end": rest}
        first, last = (Haystack("\n\n".join(own), self._tokenizer, f"{self.name} ({at})") for at, own in parts.items())
        return first, last

    def prose(self, num_tokens: int, seed: random.Random) -> list[int]:
        """Ids of so many tokens, from a random place on.

        Raises:
            SettingsError: The whole text is shorter.
        """
        self._check_length(num_tokens)
        # Paragraphs too long for what is left are passed over: with twice the room few are.
        room = min(2 * num_tokens, sum(self.counts))
        ids = list(self._tokenizer(self.around([], "", room, seed), add_special_tokens=False)["input_ids"])
        self._check_fills(len(ids), num_tokens, room)
        return ids[:num_tokens]

    def without_middle(self, text: str, num_tokens: int) -> str:
        """A text of at most `num_tokens` tokens, at least one: a longer one loses its middle."""
        ids = list(self._tokenizer(text, add_special_tokens=False)["input_ids"])
        room = num_tokens
        # Ends side by side may have a few tokens more than each alone.
        while len(ids) > num_tokens and self.count(text) > num_tokens:
            ends = ids[: (room + 1) // 2], ids[len(ids) - room // 2 :]
            text = "".join(str(self._tokenizer.decode(end, clean_up_tokenization_spaces=False)) for end in ends)
            room -= 1
        return text

    def around(self, facts: Sequence[str], question: str, num_tokens: int, seed: random.Random) -> str:
        """Paragraphs from a random place on, with facts strewn among them in the order given.

        Each fact lies in a stretch of its own, somewhere in it, so that they cover all depths.

        Args:
            facts: Paragraphs to hide.
            question: What will stand behind it.
            num_tokens: Most tokens of it all, the question included.
            seed: Where to begin, and where the facts lie.

        Raises:
            SettingsError: The facts alone are longer, the whole text is shorter, or its paragraphs are too long.
        """
        room = num_tokens - sum(self.count(f"{part}\n\n") for part in (*facts, question))
        if room < 0:
            raise SettingsError(
                f"A context of {num_tokens} tokens is too short for this task: its facts alone need "
                f"{num_tokens - room}. Give a longer --context."
            )
        self._check_length(room)
        start, left = seed.randrange(len(self.paragraphs)), room
        prose: list[str] = []
        depths = [(number + seed.random()) / len(facts) for number in range(len(facts))]
        # Once around: a paragraph that is too long for what is left gives its place to the next ones.
        for place in (*range(start, len(self.paragraphs)), *range(start)):
            if self.counts[place] <= left:
                prose.append(self.paragraphs[place])
                left -= self.counts[place]
        self._check_fills(room - left, room // 2 - SPARE, room)
        # Paragraphs side by side may have a few tokens more than each alone.
        while prose and self.count(f"{_strewn(facts, prose, depths)}\n\n{question}") > num_tokens:
            prose.pop()
        return _strewn(facts, prose, depths)

    def _check_length(self, num_tokens: int) -> None:
        if sum(self.counts) < num_tokens:
            raise SettingsError(
                f"The text {self.name} has {sum(self.counts)} tokens, but {num_tokens} are needed: give a longer one, "
                "or fewer tokens."
            )

    def _check_fills(self, found: int, needed: int, room: int) -> None:
        if found < needed:
            raise SettingsError(
                f"The text {self.name} has only {found} tokens in paragraphs that fit into {room}: put empty lines "
                "between its paragraphs, or give a longer one."
            )


def _strewn(facts: Sequence[str], prose: list[str], depths: list[float]) -> str:
    """Prose with each fact at its depth."""
    parts = list(prose)
    for depth, fact in reversed(list(zip(depths, facts, strict=True))):
        parts.insert(int(depth * len(prose)), fact)
    return "\n\n".join(parts)
