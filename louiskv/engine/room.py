"""The memory that sequences share: what they need, and the kept conversations in what they leave free."""

from louiskv.engine.kept import Kept
from louiskv.engine.memory import Memory, Need
from louiskv.engine.request import Conversation


class Room:
    """Memory with the conversations that are kept in it.

    Attributes:
        memory: All that there is.
        kept: Conversations that may go on.
    """

    def __init__(self, memory: Memory, kept: Kept) -> None:
        self.memory, self.kept = memory, kept

    def make(self, need: Need, but: Conversation | None = None) -> bool:
        """Let go of kept conversations but one until there is room for so much; of none where that is not enough."""
        if not self.memory.fits(need, (0, 0)):
            return False
        while not self.memory.fits(need, self.kept.sizes(but)):
            self.kept.drop_oldest(but)
        return True

    def may_keep(self, length: int) -> bool:
        """Whether a conversation of so many tokens is within the limit of those that are kept."""
        return self.memory.of_sequence(length) <= self.kept.limit

    def make_for_copy(self, need: Need, length: int) -> bool:
        """Make room for a copy of a sequence that is to be kept, beside what others need; whether it may be."""
        return self.may_keep(length) and self.make(need + self.memory.needed(1, length, []))
