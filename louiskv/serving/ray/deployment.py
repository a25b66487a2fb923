"""The application for Ray Serve: a front on every node, and behind them the replicas, as many as are needed."""

from typing import Any

from ray import serve
from ray.serve import Application
from ray.serve.config import RequestRouterConfig
from ray.serve.handle import DeploymentHandle
from ray.util.metrics import Counter
from starlette.types import ASGIApp

from louiskv.serving.life import LAST_WORDS, Life
from louiskv.serving.ray.fleet import Fleet
from louiskv.serving.ray.front import make_front
from louiskv.serving.ray.replica import Blueprint, Replica
from louiskv.serving.ray.replicas import Replicas
from louiskv.serving.ray.routing import ConversationRouter

# Questions that take no row, such as for figures, beside the requests of one replica.
BESIDE = 16
# How often a replica tells the routers what it holds.
TELLING = 2.0


@serve.ingress()
class Front:
    """The app of `make_front` as a deployment."""

    def __init__(
        self, replicas: DeploymentHandle[Any], max_body: int, api_key: str | None, origins: tuple[str, ...]
    ) -> None:
        self.replicas, self.life = Replicas(replicas), Life()
        self._settings: dict[str, Any] = {"max_body": max_body, "api_key": api_key, "origins": origins}

    def __serve_build_asgi_app__(self) -> ASGIApp:
        counter = Counter("louiskv_front_requests", "Requests by path and status", ("path", "status"))

        def count(path: str, status: str) -> None:
            counter.inc(tags={"path": path, "status": status})

        return make_front(self.replicas, life=self.life, count=count, **self._settings)

    async def end(self) -> None:
        """Take no more requests."""
        self.life.stopping = True


def application(
    blueprint: Blueprint, fleet: Fleet, *, api_key: str | None = None, origins: tuple[str, ...] = ()
) -> Application:
    """Put together what `serve.run` takes.

    Args:
        blueprint: What each replica is made of.
        fleet: How many there are.
        api_key: What clients must give; None for nothing.
        origins: Web pages that may ask from a browser, beside the server's own.
    """
    settings = dict(blueprint.engine)
    rows, queue = settings.get("rows") or 8, settings.get("queue") or 64
    router: dict[str, Any] = {
        "request_router_class": ConversationRouter,
        "request_router_kwargs": {"rows": rows},
        "request_routing_stats_period_s": TELLING,
    }
    # Who ends all of it has ended the requests before.
    leave = max(fleet.grace, fleet.drain, LAST_WORDS)
    replica = serve.deployment(
        ray_actor_options={"num_cpus": fleet.cpus, "num_gpus": fleet.gpus},
        # The engine itself says when its queue is full, and then another replica is asked.
        max_ongoing_requests=rows + queue + BESIDE,
        request_router_config=RequestRouterConfig(**router),
        graceful_shutdown_timeout_s=leave,
        max_constructor_retry_count=2,
        **fleet.scaling(rows),
    )(Replica)
    front = serve.deployment(
        ray_actor_options={"num_cpus": 0},
        # It only passes on: the replicas say what is too much.
        max_ongoing_requests=100_000,
        graceful_shutdown_timeout_s=leave,
        **fleet.fronting(),
    )(Front)
    app: Application = front.bind(replica.bind(blueprint, fleet), blueprint.limits.max_body, api_key, origins)
    return app
