"""An answer on its way from the engine's thread to who asked."""

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Generator, Iterator
from threading import Condition

from louiskv.engine.figures import Attended
from louiskv.engine.request import Conversation, Piece, Request


class Answer:
    """The pieces of one answer, each handed over once, to a thread or to an event loop.

    Attributes:
        request: What was asked.
        cancelled: Whether it is no longer wanted.
        conversation: What the caller can go on from when the answer has ended, if asked for by `hand_back`.
        attended: What it has attended to when it has ended after at least one step, if the request is watched.
        turns: Turns of the engine's loop until its first token came; None before.
    """

    def __init__(self, request: Request, wake_engine: Callable[[], None]) -> None:
        self.request = request
        self.cancelled = False
        self.conversation: Conversation | None = None
        self.attended: Attended | None = None
        self.turns: int | None = None
        self._wake_engine = wake_engine
        self._pieces: deque[Piece] = deque()
        self._arrived = Condition()
        self._tell: Callable[[], None] | None = None
        self._ended = False

    def cancel(self) -> None:
        """Want no more of it: its row is free at the next step, and the last piece says "cancelled"."""
        self.cancelled = True
        self._wake_engine()

    @property
    def ended(self) -> bool:
        """Whether its last piece has come."""
        return self._ended

    def give(self, piece: Piece) -> None:
        """Hand over a piece; the engine's thread does."""
        assert not self._ended, "an answer ends once"
        with self._arrived:
            self._pieces.append(piece)
            self._ended = piece.finish_reason is not None
            self._arrived.notify_all()
            if self._tell is not None:
                self._tell()

    def __iter__(self) -> Iterator[Piece]:
        """Wait for each piece; who stops before the last one may go on later."""
        while True:
            with self._arrived:
                self._arrived.wait_for(lambda: self._pieces)
                piece = self._pieces.popleft()
            yield piece
            if piece.finish_reason is not None:
                return

    async def __aiter__(self) -> AsyncIterator[Piece]:
        """Await each piece; who stops before the last one may go on later."""
        loop, arrived = asyncio.get_running_loop(), asyncio.Event()

        def tell() -> None:
            try:
                loop.call_soon_threadsafe(arrived.set)
            except RuntimeError:
                # The loop was closed: nobody waits any more.
                self.cancelled = True

        with self._arrived:
            self._tell = tell
        try:
            while True:
                arrived.clear()
                with self._arrived:
                    piece = self._pieces.popleft() if self._pieces else None
                if piece is None:
                    await arrived.wait()
                    continue
                yield piece
                if piece.finish_reason is not None:
                    return
        finally:
            with self._arrived:
                self._tell = None

    def pieces(self) -> Generator[Piece, None, None]:
        """Wait for each piece; who stops before the last one cancels."""
        try:
            yield from self
        finally:
            self._left()

    async def arriving(self) -> AsyncGenerator[Piece, None]:
        """Await each piece; who stops before the last one, or is cancelled, cancels."""
        try:
            async for piece in self:
                yield piece
        finally:
            self._left()

    def _left(self) -> None:
        if not self._ended:
            self.cancel()

    def text(self) -> str:
        """Wait for the end; the whole text.

        Raises:
            BaseException: What has gone wrong, if something has.
        """
        texts = []
        for piece in self:
            texts.append(piece.text)
            if piece.error is not None:
                raise piece.error
        return "".join(texts)
