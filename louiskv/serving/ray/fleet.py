"""How many replicas there are, and what each one needs."""

from dataclasses import dataclass
from typing import Any

import ray
from ray.serve.config import AutoscalingConfig

from louiskv.errors import SettingsError, check_count, check_range

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
        fronts: What clients reach; None for as many as there are nodes, or two where they are not known yet.
        upscale_delay: Seconds that there is too much to do before a replica is added.
        downscale_delay: Seconds that there is too little to do before one goes.
        grace: Seconds that requests have at the end of all.
        drain: Seconds that the requests of a replica have that is not needed any more.
    """

    min_replicas: int = 1
    max_replicas: int = 1
    cpus: float = 1
    gpus: int = 0
    fronts: int | None = None
    upscale_delay: float = 30.0
    downscale_delay: float = 600.0
    grace: float = 30.0
    drain: float = 600.0

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

    def fronting(self) -> dict[str, Any]:
        """How many fronts, as Ray Serve takes it: spread over the nodes, so that one is left when a node is lost.

        They need so little that all would be put on one node.
        """
        if not ray.is_initialized():
            return {"num_replicas": self.fronts or 2}
        num_nodes = max(1, len(_nodes()))
        number = self.fronts or num_nodes
        return {"num_replicas": number, "max_replicas_per_node": -(-number // num_nodes)}

    def per_node(self) -> int:
        """Replicas that may come to lie on one node, and share its memory."""
        need = {"CPU": self.cpus, "GPU": self.gpus}
        places = [min(node.get(name, 0) // size for name, size in need.items() if size) for node in _nodes()]
        return max(1, min(self.max_replicas, int(max(places, default=1))))


def _nodes() -> list[dict[str, float]]:
    """What each node has."""
    return [node["Resources"] for node in ray.nodes() if node["Alive"]]
