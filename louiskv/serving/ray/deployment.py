"""The application for Ray Serve: a front on every node, and behind them the replicas, as many as are needed."""

from dataclasses import dataclass
from typing import Any

import ray
from ray import serve
from ray.serve import Application
from ray.serve.config import AutoscalingConfig, RequestRouterConfig
from ray.serve.handle import DeploymentHandle
from ray.util.metrics import Counter
from starlette.types import ASGIApp

from louiskv.errors import SettingsError, check_count, check_range
from louiskv.serving.life import Life
from louiskv.serving.ray.front import make_front
from louiskv.serving.ray.replica import Blueprint, Replica
from louiskv.serving.ray.replicas import Replicas
from louiskv.serving.ray.routing import ConversationRouter

# Questions that take no row, such as for figures, beside the requests of one replica.
BESIDE = 16
# How often a replica tells the routers what it holds.
TELLING = 2.0
# Seconds of the past that decide how many replicas are needed, at the least; Ray Serve warns below.
SHORTEST_LOOK = 11.0


@dataclass(frozen=True)
class Fleet:
    """How many replicas there are, and what each one needs.

    Attributes:
        min_replicas: Replicas that are always there.
        max_replicas: Replicas at the most; there are more than the least ones while they have more to do.
        cpus: CPU cores of each one.
        gpus: GPUs of each one: 0 or 1.
        fronts: What clients reach; None for one on each node.
        upscale_delay: Seconds that there is too much to do before a replica is added.
        downscale_delay: Seconds that there is too little to do before one goes.
        grace: Seconds that a replica's requests have when it goes.
    """

    min_replicas: int = 1
    max_replicas: int = 1
    cpus: float = 1
    gpus: int = 0
    fronts: int | None = None
    upscale_delay: float = 30.0
    downscale_delay: float = 600.0
    grace: float = 30.0

    def __post_init__(self) -> None:
        """Check the numbers."""
        check_count("min_replicas", self.min_replicas, 1)
        check_count("max_replicas", self.max_replicas, 1)
        if self.max_replicas < self.min_replicas:
            raise SettingsError(
                f"max_replicas={self.max_replicas} is below min_replicas={self.min_replicas}: give as many or more."
            )
        check_range("cpus", self.cpus, 0.1, 1024)
        check_range("gpus", self.gpus, 0, 1)
        if self.fronts is not None:
            check_count("fronts", self.fronts, 1)

    def scaling(self, rows: int) -> dict[str, Any]:
        """How many replicas, as Ray Serve takes it: there are more when the rows of those that there are do not do."""
        if self.min_replicas == self.max_replicas:
            return {"num_replicas": self.min_replicas}
        config = AutoscalingConfig(
            min_replicas=self.min_replicas,
            max_replicas=self.max_replicas,
            target_ongoing_requests=rows,
            upscale_delay_s=self.upscale_delay,
            downscale_delay_s=self.downscale_delay,
            look_back_period_s=min(30.0, max(SHORTEST_LOOK, self.upscale_delay)),
        )
        return {"autoscaling_config": config}


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
    replica = serve.deployment(
        ray_actor_options={"num_cpus": fleet.cpus, "num_gpus": fleet.gpus},
        # The engine itself says when its queue is full, and then another replica is asked.
        max_ongoing_requests=rows + queue + BESIDE,
        request_router_config=RequestRouterConfig(**router),
        graceful_shutdown_timeout_s=fleet.grace,
        max_constructor_retry_count=2,
        **fleet.scaling(rows),
    )(Replica)
    front = serve.deployment(
        ray_actor_options={"num_cpus": 0},
        num_replicas=fleet.fronts or sum(bool(node["Alive"]) for node in ray.nodes()) or 1,
        # It only passes on: the replicas say what is too much.
        max_ongoing_requests=100_000,
        graceful_shutdown_timeout_s=fleet.grace,
    )(Front)
    app: Application = front.bind(replica.bind(blueprint), blueprint.limits.max_body, api_key, origins)
    return app
