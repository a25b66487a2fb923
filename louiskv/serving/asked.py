"""One request while the engine answers it: all its answers as they come, and what is measured of them."""

import asyncio
from collections.abc import AsyncGenerator, Sequence

from starlette.concurrency import run_in_threadpool

from louiskv.engine import Answer, Engine, Piece, Request
from louiskv.serving.errors import as_api_error
from louiskv.serving.metrics import Metrics
from louiskv.serving.prompts import Prompt, Prompts
from louiskv.serving.shapes import Said


class Asked:
    """The answers to one request.

    Attributes:
        answers: Those of the engine.
        said: What has come of each.
    """

    def __init__(
        self,
        engine: Engine,
        prompts: Prompts,
        metrics: Metrics,
        asked: Sequence[tuple[Prompt, Request]],
    ) -> None:
        """Ask.

        Raises:
            ApiError: The engine does not take one of the requests; the others are withdrawn.
        """
        self._prompts, self._asked = prompts, asked
        self.answers: list[Answer] = []
        try:
            for _, request in asked:
                self.answers.append(engine.submit(request))
        except Exception as error:
            self.cancel()
            raise as_api_error(error) from error
        self.said = [Said() for _ in self.answers]
        self._timings = [metrics.timing() for _ in self.answers]

    def cancel(self) -> None:
        """Want no more; each answer ends as "cancelled" if it has not ended."""
        for answer in self.answers:
            if not answer.ended:
                answer.cancel()

    async def pieces(self) -> AsyncGenerator[tuple[int, Piece], None]:
        """The pieces of all answers, with the number of each; `said` holds what came before.

        Raises:
            ApiError: One of them has gone wrong; the others are cancelled.
        """
        come: asyncio.Queue[tuple[int, Piece]] = asyncio.Queue()

        async def listen(index: int, answer: Answer) -> None:
            async for piece in answer:
                self._timings[index].note(piece)
                come.put_nowait((index, piece))

        listening = [asyncio.create_task(listen(*each)) for each in enumerate(self.answers)]
        try:
            left = len(self.answers)
            while left:
                index, piece = await come.get()
                if piece.error is not None:
                    raise as_api_error(piece.error) from piece.error
                yield index, piece
                await self._note(index, piece)
                left -= piece.finish_reason is not None
        finally:
            self.cancel()
            # Their last pieces still come, and are counted.
            await asyncio.gather(*listening)

    async def all(self) -> list[Said]:
        """Wait for the end of all; raises as `pieces` does."""
        async for _ in self.pieces():
            pass
        return self.said

    async def _note(self, index: int, piece: Piece) -> None:
        said = self.said[index]
        said.text += piece.text
        said.token_ids += piece.token_ids
        said.logprobs += piece.logprobs
        if piece.finish_reason is not None and piece.usage is not None:
            said.finish_reason, said.usage = piece.finish_reason, piece.usage
            prompt, request = self._asked[index]
            if request.kept:
                # It waits for those whose texts are being made into tokens.
                await run_in_threadpool(self._prompts.keep, prompt, said.text, said.token_ids)
