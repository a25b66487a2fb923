"""One engine as a replica of a Ray Serve deployment; it answers as the server of one process does."""

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any

from ray import serve
from starlette.types import Message

from louiskv import calibration, models
from louiskv.engine import Engine
from louiskv.errors import DeviceMemoryError, EngineStoppedError, HostMemoryError, NotCalibratedError
from louiskv.methods import Method
from louiskv.serving.app import make_app
from louiskv.serving.calls import Call, messages_of, whole
from louiskv.serving.conversations import Heard, Places, following, keys_of
from louiskv.serving.desk import Limits
from louiskv.serving.life import Life
from louiskv.serving.prompts import Prompts
from louiskv.serving.ray.fleet import Fleet
from louiskv.serving.ray.routing import CONVERSATIONS
from louiskv.store.pool import available_host_memory

# Conversations that a replica tells the routers of: they need it only where a client has changed the front.
MAX_TOLD = 1000
CHAT = "/v1/chat/completions"
# The message before the last one of an answer: keys of the conversations that it has become.
SAID = "louiskv.said"


@dataclass(frozen=True)
class Blueprint:
    """All that an engine with its app is made of, in plain values that another machine can be sent.

    Attributes:
        model: Name, folder or file; every node must have it.
        name: By which clients know it.
        method: What to keep where.
        dtype: Of the weights.
        device: Where it runs.
        impl: Implementation of the operations.
        engine: Further settings of `Engine`.
        limits: What one request may be.
    """

    model: str
    name: str
    method: Method
    dtype: str = "auto"
    device: str = "auto"
    impl: str | None = None
    engine: tuple[tuple[str, Any], ...] = ()
    limits: Limits = field(default_factory=Limits)

    def build(self, per_node: int) -> tuple[Engine, Prompts, Method]:
        """Load the model and begin; the method is as it is for the model.

        Args:
            per_node: Engines that share the node's memory at the most.

        Raises:
            HostMemoryError: Not even one of the longest sequences fits.
            DeviceMemoryError: The same of the device.
        """
        model, words = models.load(self.model, dtype=self.dtype, device=self.device)
        try:
            method = self.method.for_model(model)
        except NotCalibratedError:
            calibration.score_heads(model)
            method = self.method.for_model(model)
        settings = {"host_memory": available_host_memory() * 9 // 10 // per_node}
        settings |= {name: value for name, value in self.engine if value is not None}
        engine = Engine(model, words, method, impl=self.impl, **settings)  # type: ignore[arg-type]
        try:
            engine.check_length(engine.max_length)
        except (HostMemoryError, DeviceMemoryError) as error:
            raise type(error)(f"{error} A lower max_length or a larger host_memory lets the replica begin.") from error
        return engine, Prompts(words, engine.end_tokens), method


class Replica:
    """Answers what the front sends it."""

    def __init__(self, blueprint: Blueprint, fleet: Fleet) -> None:
        self.name = serve.get_replica_context().replica_id.unique_id
        self.engine, prompts, method = blueprint.build(fleet.per_node())
        self.life, self.places = Life(), Places(MAX_TOLD)
        self.app = make_app(self.engine, prompts, blueprint.name, method, life=self.life, limits=blueprint.limits)
        self._hurry = asyncio.Event()

    async def answer(self, call: Call) -> AsyncGenerator[Message, None]:
        """What the app sends; before its last message, the conversations that a chat has become.

        With the last message in hand a client can go on, and then who routes it must know where.
        """
        heard, told = Heard(), False
        try:
            async with aclosing(messages_of(self.app, call)) as messages:
                async for message in messages:
                    if call.path == CHAT:
                        heard.hear(message)
                    if heard.texts and not message.get("more_body", False):
                        told = True
                        yield {"type": SAID, "keys": self._become(call, heard)}
                    yield message
        finally:
            # What a client has heard that has left is kept as well.
            if heard.texts and not told:
                self._become(call, heard)

    def _become(self, call: Call, heard: Heard) -> list[str]:
        """Remember the conversations that a chat has become; returns their keys."""
        asked, _ = keys_of(call.body)
        keys = [following(asked, "assistant", text) for text in heard.texts.values()]
        self.places.keep(keys, self.name)
        return keys

    async def whole(self, call: Call) -> tuple[str, int, bytes]:
        """The replica's name, and status and body of what the app answers."""
        return self.name, *await whole(self.app, call)

    async def holds(self, keys: Sequence[str]) -> tuple[int, str] | None:
        """The place of the first key of a conversation that it holds, and its name; None if it holds none."""
        known = self.places.first(keys)
        return None if known is None else (known, self.name)

    async def name_of(self) -> str:
        """The replica's name, which tells that it is there."""
        return self.name

    async def end(self, grace: float) -> None:
        """Take no more requests, and end in good order; a second call waits no longer."""
        if self.life.stopping:
            self._hurry.set()
        await self.life.end(grace, self._hurry)

    def check_health(self) -> None:
        """Raise when there must be another replica in the place of this one."""
        if not self.engine.alive:
            raise EngineStoppedError("The engine was stopped, or an error has ended it.")

    def record_routing_stats(self) -> dict[str, Any]:
        """What the routers learn of this replica."""
        return {CONVERSATIONS: self.places.newest(MAX_TOLD)}

    def __del__(self) -> None:
        if engine := vars(self).get("engine"):
            engine.stop(finish=False)
