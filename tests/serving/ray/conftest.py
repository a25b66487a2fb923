"""A cluster of two nodes on this machine, each with room for one replica of a tiny random model."""

import os
import secrets
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

# Before ray is imported: nothing is reported, no key is written into a home, a node that does not answer is given up
# soon, but not where the machine is merely busy, and replicas get as much of it as other tests do: by itself Ray lets
# everything else go first.
os.environ |= {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_AUTH_MODE": "token",
    "RAY_AUTH_TOKEN": os.environ.get("RAY_AUTH_TOKEN") or secrets.token_hex(32),
    "RAY_health_check_initial_delay_ms": "0",
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_failure_threshold": "10",
    "RAY_worker_niceness": "0",
    "RAY_SERVE_LOG_TO_STDERR": "0",
    "RAY_SERVE_REPLICA_AUTOSCALING_METRIC_PUSH_INTERVAL_S": "0.5",
    "RAY_SERVE_HANDLE_AUTOSCALING_METRIC_PUSH_INTERVAL_S": "0.5",
}

# Ray uses what its own dependencies warn of.
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import ray
    from ray import serve
    from ray.cluster_utils import Cluster

from tests.serving.ray.fleet import Fleeted
from tests.serving.serving import a_model, tokenizer

# Beside the replica there is room for a batch.
CORES = 3


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model as others keep theirs."""
    folder = tmp_path_factory.mktemp("models") / "tiny"
    a_model().save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(scope="package")
def cluster() -> Iterator[Cluster]:
    """Two nodes, and nothing is left of them for the tests that follow: what idles takes time of theirs."""
    node: dict[str, Any] = {"num_cpus": CORES, "num_gpus": 0, "object_store_memory": 100 * 2**20}
    with pytest.MonkeyPatch.context() as patch:
        # Threads that wait for each other are slow where a core is not theirs alone.
        patch.setenv("OMP_NUM_THREADS", "1")
        made = Cluster(initialize_head=True, head_node_args={**node, "include_dashboard": False})
        try:
            made.add_node(**node)
            made.connect()
            yield made
        finally:
            serve.shutdown()
            ray.shutdown()
            made.shutdown()


@pytest.fixture(scope="package")
def fleet(cluster: Cluster, model_folder: Path) -> Iterator[Fleeted]:
    """The application, with one replica at first and two under load."""
    with Fleeted.deployed(cluster, model_folder) as made:
        yield made
