"""An application on a cluster, asked as clients do."""

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import openai
from ray import serve
from ray.cluster_utils import Cluster

from louiskv.serving.ray import Arguments, build
from louiskv.serving.ray.cluster import free_port
from tests.serving.serving import MODEL, Served

CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
ROWS, QUEUE = 2, 2
SETTINGS: dict[str, Any] = {
    "method": "louiskv",
    "budget": "1500",
    "sink": 3,
    "window": 10,
    "unit_size": 4,
    "max_segment": 6,
    "dense_layers": 0,
    "rows": ROWS,
    "queue": QUEUE,
    "prefill_chunk": 64,
    "kept_memory": "256M",
    "host_memory": "1G",
    "device": "cpu",
    "cpus_per_replica": 2,
    "min_replicas": 1,
    "max_replicas": 2,
    "upscale_delay": 0.5,
    "grace": 5,
}


@dataclass
class Fleeted(Served):
    """A front that is asked on a real socket."""

    cluster: Any = None
    ended: list[Any] = field(default_factory=list)

    @classmethod
    @contextmanager
    def deployed(cls, cluster: Cluster, model: Path) -> Iterator["Fleeted"]:
        port = free_port("127.0.0.1")
        serve.start(proxy_location="HeadOnly", http_options={"host": "127.0.0.1", "port": port})
        serve.run(build(Arguments(model=str(model), **SETTINGS)), name="louiskv")
        nothing: Any = None
        made = cls(f"http://127.0.0.1:{port}", nothing, nothing, nothing, cluster=cluster)
        try:
            yield made
        finally:
            for each in made.made:
                each.close()

    def figures(self) -> dict[str, Any]:
        status, told, _ = self.ask("/louiskv/v1/figures")
        assert status == 200, told
        return dict(told)

    def replicas(self) -> list[str]:
        return list(self.figures()["replicas"])

    def idle(self) -> bool:
        figures = self.figures()["figures"]
        return not any(figures[name] for name in ("running", "taking_in", "waiting"))

    def begin(self, stream: bool, max_tokens: int, seed: int = 0) -> "InFlight":
        return InFlight(self.client(timeout=120), stream, max_tokens, seed)


class InFlight:
    """A request that is being answered.

    Attributes:
        outcome: In the end the reason why it has ended, or the error; "left" for one that was left.
    """

    def __init__(self, client: openai.OpenAI, stream: bool, max_tokens: int, seed: int) -> None:
        self.outcome: str | openai.OpenAIError | None = None
        self._left = False
        self._client, self._stream, self._max_tokens, self._seed = client, stream, max_tokens, seed
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        asked: Any = {
            "model": MODEL,
            "messages": [{"role": "user", "content": f"The other one, number {self._seed}"}],
            "max_tokens": self._max_tokens,
            "seed": self._seed,
            "extra_body": {"ignore_eos": True},
        }
        try:
            if self._stream:
                reason = None
                with self._client.chat.completions.create(**asked, stream=True) as parts:
                    for part in parts:
                        if self._left:
                            self.outcome = "left"
                            return
                        reason = part.choices[0].finish_reason or reason
                self.outcome = reason or "cut off"
            else:
                self.outcome = self._client.chat.completions.create(**asked).choices[0].finish_reason
        except openai.OpenAIError as error:
            self.outcome = error

    def leave(self) -> None:
        """Want no more of a stream; one that has no row yet is left when its first part comes."""
        self._left = True

    def end(self, seconds: float = 120) -> str | openai.OpenAIError | None:
        self._thread.join(seconds)
        assert not self._thread.is_alive(), "it did not end"
        return self.outcome


def until(true: Callable[[], Any], seconds: float = 60) -> None:
    """Wait until something is true."""
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it did not come"
        time.sleep(0.1)


def request(name: str, content: str, **more: Any) -> dict[str, Any]:
    body = {"model": MODEL, "messages": [{"role": "user", "content": content}], "max_tokens": 8, "seed": 1, **more}
    return {"custom_id": name, "method": "POST", "url": CHAT, "body": body}


def lines(*told: Any) -> bytes:
    return b"".join((each if isinstance(each, bytes) else json.dumps(each).encode()) + b"\n" for each in told)
