"""Conversations that may go on, kept within a limit of memory."""

from collections.abc import Sequence

from louiskv.engine.request import Conversation


def common_prefix(first: Sequence[int], second: Sequence[int]) -> int:
    """Tokens that both begin with."""
    known, end = 0, min(len(first), len(second))
    while known < end:
        middle = (known + end + 1) // 2
        if tuple(first[known:middle]) == tuple(second[known:middle]):
            known = middle
        else:
            end = middle - 1
    return known


def usable(conversation: Conversation, prompt: Sequence[int]) -> int:
    """Tokens of a conversation that a prompt can go on from; 0 for none.

    The prompt's last tokens must be fed, to see what comes next. What the conversation holds beyond them is cropped, if
    nothing of it is gone for good.
    """
    held, crops = len(conversation.token_ids), conversation.cache.crops_exactly
    # A single token would be taken for an output, and not attend to everything.
    known = min(common_prefix(conversation.token_ids, prompt), len(prompt) - (2 if crops else 1))
    return max(0, known) if crops or known == held else 0


class Kept:
    """Conversations by the order in which they were last used.

    Attributes:
        limit: Bytes that they may have together, wherever they are.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._held: list[Conversation] = []
        self._sizes: list[tuple[int, int]] = []

    def __len__(self) -> int:
        return len(self._held)

    def sizes(self, but: Conversation | None = None) -> tuple[int, int]:
        """Bytes on the host and on the device of all but one."""
        counted = [sizes for held, sizes in zip(self._held, self._sizes, strict=True) if held is not but]
        return sum(host for host, _ in counted), sum(device for _, device in counted)

    def keep(self, conversation: Conversation) -> None:
        """Keep one more; those unused for longest go where there is no room."""
        self._held.append(conversation)
        self._sizes.append(conversation.sizes)
        while sum(self.sizes()) > self.limit:
            self._pop(0)

    def drop_oldest(self, but: Conversation | None = None) -> bool:
        """Let go of the one unused for longest, but for one; whether there was another."""
        place = next((place for place, held in enumerate(self._held) if held is not but), None)
        if place is not None:
            self._pop(place)
        return place is not None

    def find(self, prompt: Sequence[int]) -> Conversation | None:
        """The conversation that saves most of a prompt, if one does.

        One of which less than half would be used is of somebody else, who may come back, and stays.
        """
        found, most = None, 0
        for conversation in self._held:
            size = usable(conversation, prompt)
            if size > most and 2 * size >= len(conversation.token_ids):
                found, most = conversation, size
        return found

    def take(self, prompt: Sequence[int]) -> Conversation | None:
        """Hand over the conversation that saves most of a prompt, if one does."""
        found = self.find(prompt)
        if found is not None:
            self._pop(next(place for place, held in enumerate(self._held) if held is found))
        return found

    def _pop(self, place: int) -> None:
        self._held.pop(place)
        self._sizes.pop(place)
