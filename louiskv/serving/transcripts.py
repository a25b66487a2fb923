"""The tokens of earlier turns, so that a chat goes on from those that were generated.

A client sends an answer back as text. Turned into tokens again it can be other tokens than the model gave, and what was
kept of the turn before would be of no use. So the tokens of each turn are remembered beside its text.
"""

from array import array
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

# Tokens of all turns together.
MAX_TOKENS = 2**22


@dataclass(frozen=True)
class Turn:
    """What was asked and answered.

    Attributes:
        prompt: What the chat template made of the messages.
        said: The answer as the client got it.
        answer: The text of the answer's tokens: at most what was said, for a stop text may cut a token in two.
        token_ids: Of prompt and answer, without the token that ended it.
    """

    prompt: str
    said: str
    answer: str
    token_ids: Sequence[int]

    def rest(self, rendered: str) -> str | None:
        """What a chat has behind this turn, by what the template makes of it now; None if it does not go on from it."""
        if not rendered.startswith(self.prompt):
            return None
        behind = rendered[len(self.prompt) :]
        if behind.startswith(self.answer):
            return behind[len(self.answer) :]
        # Many templates strip what was said; the model said it nevertheless.
        behind, stripped = behind.lstrip(), self.answer.strip()
        if self.answer == self.said and behind.startswith(stripped):
            return behind[len(stripped) :]
        return None


class Transcripts:
    """The newest turns, by what was answered in them.

    Attributes:
        limit: Tokens of all together.
    """

    def __init__(self, limit: int = MAX_TOKENS) -> None:
        self.limit, self._held = limit, 0
        self._turns: OrderedDict[tuple[str, str], Turn] = OrderedDict()

    def __len__(self) -> int:
        return len(self._turns)

    def keep(self, turn: Turn) -> None:
        """Remember a turn; the oldest ones are forgotten where there are too many."""
        if not turn.said.strip():
            return
        key = (turn.said.strip(), turn.prompt)
        self._forget(key)
        self._turns[key] = Turn(turn.prompt, turn.said, turn.answer, array("q", turn.token_ids))
        self._held += len(turn.token_ids)
        while self._held > self.limit:
            self._forget(next(iter(self._turns)))

    def find(self, rendered: str, answers: Iterable[str]) -> tuple[Turn, str] | None:
        """The longest turn that a chat goes on from, and what stands behind it.

        Args:
            rendered: What the template makes of the messages.
            answers: Those of them that the assistant has said.
        """
        said = {answer.strip() for answer in answers}
        found: tuple[Turn, str] | None = None
        for (answer, _), turn in self._turns.items():
            if answer in said and (found is None or len(turn.token_ids) > len(found[0].token_ids)):
                rest = turn.rest(rendered)
                found = found if rest is None else (turn, rest)
        return found

    def _forget(self, key: tuple[str, str]) -> None:
        turn = self._turns.pop(key, None)
        self._held -= 0 if turn is None else len(turn.token_ids)
