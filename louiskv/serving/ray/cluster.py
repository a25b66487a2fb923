"""A served application from its first request to its last, seen from the process that has started it."""

import logging
import signal
import socket
import sys
import threading
from collections.abc import Callable, Generator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import ray
from ray import serve
from ray.exceptions import RayError
from ray.serve import Application
from ray.serve.context import _get_global_client
from ray.serve.exceptions import RayServeException

from louiskv.errors import SettingsError
from louiskv.serving.errors import log
from louiskv.serving.life import LAST_WORDS
from louiskv.serving.ray.deployment import Front
from louiskv.serving.ray.fleet import Fleet
from louiskv.serving.ray.replica import Replica

NAME = "louiskv"
SIGNALS = (signal.SIGINT, signal.SIGTERM)
# Bytes for what processes of one machine hand each other; here it is a few messages.
OBJECT_STORE = 128 * 2**20


class ClusterError(Exception):
    """A cluster cannot be reached, or does not run the application."""


@contextmanager
def connected(address: str | None) -> Generator[bool, None, None]:
    """Be in a cluster; yields whether it was started here, to end with this.

    Args:
        address: Of a cluster that runs, "auto" for the one of this machine; None starts one of this machine alone.

    Raises:
        ClusterError: There is none at the address.
    """
    quiet: dict[str, Any] = {"logging_level": logging.ERROR, "log_to_driver": False}
    own = address is None
    try:
        if own:
            ray.init("local", include_dashboard=False, object_store_memory=OBJECT_STORE, **quiet)
        else:
            ray.init(address, **quiet)
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise ClusterError(
            f"No cluster of Ray can be reached at {address}: {error}. One that wants a token needs RAY_AUTH_MODE=token."
        ) from error
    try:
        # Ray's own way to hear of SIGTERM is to abort.
        with _signals(_leave):
            yield own
    except RayError as error:
        raise ClusterError(_reason(str(error))) from error
    finally:
        ray.shutdown()


def check_room(fleet: Fleet) -> None:
    """Raise `SettingsError` if the cluster has too few cores or GPUs for the least replicas."""
    there = ray.cluster_resources()
    for name, option, need in (("CPU", "cpus_per_replica", fleet.cpus), ("GPU", "gpus_per_replica", fleet.gpus)):
        if need * fleet.min_replicas > there.get(name, 0):
            raise SettingsError(
                f"{fleet.min_replicas} replicas with {option}={need:g} need {need * fleet.min_replicas:g} {name}s, but "
                f"the cluster has {there.get(name, 0):g}. Give fewer replicas, or lower {option}."
            )


def deploy(app: Application, host: str, port: int) -> str:
    """Deploy, and wait until requests are taken; returns the address.

    Where Serve runs in the cluster already, it keeps its own host and port.

    Raises:
        ClusterError: It does not run.
    """
    _start_serve(host, port or free_port(host))
    if NAME in serve.status().applications:
        raise ClusterError(
            f"The cluster serves an application {NAME} already. End it first: ray.serve.delete({NAME!r}) in Python, or "
            "`serve shutdown` for all that it serves."
        )
    try:
        serve.run(app, name=NAME)
    except RuntimeError as error:
        told = serve.status().applications.get(NAME)
        reasons = [one.message for one in told.deployments.values() if one.message] if told else []
        serve.delete(NAME)
        raise ClusterError(_reason("\n".join(reasons) or str(error))) from error
    except BaseException:
        # A signal while it begins.
        serve.delete(NAME)
        raise
    client = _get_global_client()
    assert client is not None
    return str(client.root_url)


def _start_serve(host: str, port: int) -> None:
    """See to it that Serve runs in the cluster; where it cannot listen, it does not stay there to be found later."""
    log_of_serve = logging.getLogger("ray.serve")
    log_of_serve.setLevel(logging.ERROR)
    ran = _get_global_client(raise_if_no_controller_running=False) is not None
    try:
        serve.start(
            http_options={"host": host, "port": port},
            logging_config={"log_level": "WARNING", "enable_access_log": False},
        )
    except (RuntimeError, TimeoutError, RayError) as error:
        if not ran:
            serve.shutdown()
        raise ClusterError(f"Serve does not start at {host} port {port}: {last_line(str(error))}") from error
    log_of_serve.setLevel(logging.ERROR)


def wait_and_end(grace: float) -> None:
    """Wait for a signal, then end the application in good order; a second signal waits no longer.

    Nothing new is taken then, and what runs has `grace` seconds: what has not ended in time ends as "cancelled".
    """
    wanted, hurry = threading.Event(), threading.Event()

    def on_signal(_: int, __: FrameType | None) -> None:
        (hurry if wanted.is_set() else wanted).set()

    with _signals(on_signal):
        while not wanted.wait(3600):
            pass
        try:
            ending = _Ending(lambda: _end_requests(grace))
            while not ending.done.wait(0.05):
                if hurry.is_set():
                    _tell(Replica.__name__, LAST_WORDS, 0.0)
                    break
        finally:
            serve.delete(NAME)


def _end_requests(grace: float) -> None:
    """Take no more requests, and end those that there are."""
    _tell(Front.__name__, LAST_WORDS)
    _tell(Replica.__name__, grace + LAST_WORDS, grace)


def _tell(deployment: str, patience: float, *arguments: Any) -> None:
    """Tell all of a deployment to end, and wait until they have, but not longer than for those that answer."""
    try:
        told = serve.get_deployment_handle(deployment, NAME).broadcast("end", *arguments)
        told.results(timeout_s=patience + LAST_WORDS, return_exceptions=True)
    except (RayServeException, TimeoutError):
        log.warning("Not all of %s have ended in order.", deployment)


def _leave(number: int, _: FrameType | None) -> None:
    """At a signal before there is anything to end; what was begun is undone on the way out."""
    sys.exit(128 + number)


class _Ending(threading.Thread):
    """Does something beside the main thread, which hears of signals."""

    def __init__(self, work: Callable[[], object]) -> None:
        super().__init__(daemon=True)
        self.done, self._work = threading.Event(), work
        self.start()

    def run(self) -> None:
        try:
            self._work()
        finally:
            self.done.set()


@contextmanager
def _signals(heard: Callable[[int, FrameType | None], None]) -> Generator[None, None, None]:
    before = [signal.signal(each, heard) for each in SIGNALS]
    try:
        yield
    finally:
        for each, handler in zip(SIGNALS, before, strict=True):
            signal.signal(each, handler)


def free_port(host: str) -> int:
    """A port that nobody has at the moment."""
    with socket.create_server((host, 0)) as taken:
        return int(taken.getsockname()[1])


def _reason(message: str) -> str:
    """What a replica said last before it ended, out of a traceback through several processes."""
    ours = [line for line in message.splitlines() if line.startswith("louiskv.errors.")]
    if ours:
        return ours[-1].partition(": ")[2]
    return f"A replica does not begin: {last_line(message)} Ray's logs say more (/tmp/ray/session_latest/logs/serve)."


def last_line(message: str) -> str:
    """The last line of a message."""
    return ([line.strip() for line in message.splitlines() if line.strip()] or ["It does not say why."])[-1]
