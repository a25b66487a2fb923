"""What a server is doing beside its engine: what it answers, and whether it takes more."""

import asyncio
from collections.abc import Callable

from louiskv.serving.asked import Asked
from louiskv.serving.errors import stopping

# Seconds in which answers that were ended must reach their clients.
LAST_WORDS = 5.0


class Life:
    """From the first request to the last.

    Attributes:
        stopping: Whether no more requests are taken.
        open: Those that are being answered.
    """

    def __init__(self) -> None:
        self.stopping = False
        self.open: set[Asked] = set()

    def check(self) -> None:
        """Raise `ApiError` when no more requests are taken."""
        if self.stopping:
            raise stopping()

    def begin(self, asked: Asked) -> Callable[[], None]:
        """Note that a request is being answered; returns what to call when it is not any more."""
        self.open.add(asked)
        return lambda: self.open.discard(asked)

    async def end(self, grace: float, hurry: asyncio.Event) -> None:
        """Take no more requests, wait for those that there are, and end what is left then.

        Args:
            grace: Seconds to wait.
            hurry: When it is set, wait no longer.
        """
        self.stopping = True
        await self._empty(grace, hurry)
        for asked in list(self.open):
            asked.cancel()
        await self._empty(LAST_WORDS, asyncio.Event())

    async def _empty(self, patience: float, hurry: asyncio.Event) -> None:
        """Wait until nothing is open, but no longer than so many seconds."""
        loop = asyncio.get_running_loop()
        until = loop.time() + patience
        while self.open and not hurry.is_set() and loop.time() < until:
            await asyncio.sleep(0.02)
