"""On a cluster of Ray: what `louiskv serve --ray` and `louiskv batch --ray` begin with, and the former."""

from collections.abc import Generator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from louiskv.cli.failures import ServerError, UsageError
from louiskv.cli.options import FleetChoice, ModelChoice
from louiskv.methods import Method
from louiskv.models import name_of

if TYPE_CHECKING:
    from louiskv.serving.desk import Limits
    from louiskv.serving.ray.fleet import Fleet
    from louiskv.serving.ray.replica import Blueprint


def check_ray() -> None:
    """Raise `UsageError` without the extra."""
    if find_spec("ray") is None:
        raise UsageError("--ray needs ray: pip install 'louiskv[serve,ray]'")


@contextmanager
def on_cluster(
    choice: FleetChoice,
    model: ModelChoice,
    method: Method,
    engine: dict[str, Any],
    limits: "Limits",
    name: str | None,
    grace: float = 0.0,
) -> Generator[tuple["Blueprint", "Fleet"], None, None]:
    """Be in the cluster; yields what a replica is made of, and how many there are.

    Raises:
        ServerError: The cluster cannot be reached, or does not run what it is given.
        SettingsError: There are too few cores or GPUs.
    """
    import ray

    from louiskv.serving.ray.builder import replicas_between
    from louiskv.serving.ray.cluster import ClusterError, check_room, connected
    from louiskv.serving.ray.fleet import Fleet
    from louiskv.serving.ray.replica import Blueprint

    least, most = replicas_between(choice.replicas, choice.min_replicas, choice.max_replicas)
    try:
        with connected(choice.ray_address):
            there = model.device != "cpu" and ray.cluster_resources().get("GPU", 0) > 0
            gpus = int(there) if choice.gpus_per_replica is None else choice.gpus_per_replica
            fleet = Fleet(least, most, cpus=choice.cpus_per_replica or 1, gpus=gpus, grace=grace)
            check_room(fleet)
            blueprint = Blueprint(
                _everywhere(model.name), name or name_of(model.name), method, model.dtype, model.device, model.impl,
                tuple(engine.items()), limits,
            )  # fmt: skip
            yield blueprint, fleet
    except ClusterError as error:
        raise ServerError(str(error)) from error


def serve_fleet(
    choice: FleetChoice,
    model: ModelChoice,
    method: Method,
    engine: dict[str, Any],
    sizes: tuple[int, int | None],
    *,
    name: str | None,
    api_key: str | None,
    origins: tuple[str, ...],
    address: tuple[str, int],
    grace: float,
    console: Console,
) -> None:
    """Deploy, say that it serves, and wait for a signal; raises as `on_cluster` does."""
    from louiskv.serving.desk import Limits

    with on_cluster(choice, model, method, engine, Limits(*sizes), name, grace) as (blueprint, fleet):
        from louiskv.serving.ray.cluster import deploy, wait_and_end
        from louiskv.serving.ray.deployment import application

        app = application(blueprint, fleet, api_key=api_key, origins=origins)
        with console.status(f"Starting {fleet.min_replicas} replicas of {model.name}"):
            at = deploy(app, *address)
        print(f"Serving {blueprint.name} with {type(method).__name__} at {at} (API at {at}/v1)", flush=True)
        wait_and_end(grace)


def _everywhere(model: str) -> str:
    """A model's name, whatever folder a process is in."""
    path = Path(model).expanduser()
    return str(path.resolve()) if path.exists() else model
