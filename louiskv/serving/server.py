"""A server from its first request to its last: the socket, the signals, and the end in good order."""

import asyncio
import signal
import socket
from collections.abc import Callable, Generator
from contextlib import contextmanager

import uvicorn
from starlette.types import ASGIApp

from louiskv.serving.life import LAST_WORDS, Life

SIGNALS = (signal.SIGINT, signal.SIGTERM)
# A client that reads nothing for so long is gone, where the system can see to that.
UNREAD_SECONDS = 60.0


def listen_at(host: str, port: int) -> socket.socket:
    """A socket bound to an address; port 0 takes a free one.

    Raises:
        OSError: It cannot be, for example because another program has it.
    """
    family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    bound = socket.socket(family, kind, protocol)
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if hasattr(socket, "TCP_USER_TIMEOUT"):
            bound.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(1000 * UNREAD_SECONDS))
        bound.bind(address)
    except OSError:
        bound.close()
        raise
    return bound


def address_of(bound: socket.socket) -> str:
    """The address as a client writes it."""
    host, port = bound.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


class _Server(uvicorn.Server):
    """Leaves signals to us: its own way ends the process by the signal, and drops what is being answered."""

    @contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        yield


async def serve(
    app: ASGIApp, bound: socket.socket, life: Life, grace: float, on_ready: Callable[[Callable[[], None]], None]
) -> None:
    """Answer until a signal comes, then end in good order.

    The first signal lets no more requests in, and what runs has `grace` seconds; the second one ends it at once.

    Args:
        app: What answers.
        bound: Where to listen; it is closed.
        life: Of the app.
        grace: Seconds.
        on_ready: Called when requests are taken, with what ends the server as a signal does, from any thread.
    """
    config = uvicorn.Config(
        app,
        # Which has a limit for headers.
        http="h11",
        lifespan="off",
        ws="none",
        log_level="warning",
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=int(LAST_WORDS),
    )
    server, loop = _Server(config), asyncio.get_running_loop()
    wanted, hurry = asyncio.Event(), asyncio.Event()

    def stop() -> None:
        (hurry if wanted.is_set() else wanted).set()

    def stop_from_any_thread() -> None:
        loop.call_soon_threadsafe(stop)

    async def end() -> None:
        await wanted.wait()
        await life.end(grace, hurry)
        server.should_exit = True

    ending = asyncio.create_task(end())
    running = asyncio.create_task(server.serve(sockets=[bound]))
    with _signals(loop, stop):
        while not server.started and not running.done():
            await asyncio.sleep(0.01)
        if server.started:
            on_ready(stop_from_any_thread)
        await running
    ending.cancel()


@contextmanager
def _signals(loop: asyncio.AbstractEventLoop, stop: Callable[[], None]) -> Generator[None, None, None]:
    """Call `stop` at a signal; only a main thread hears of them."""
    try:
        for each in SIGNALS:
            loop.add_signal_handler(each, stop)
    except (ValueError, RuntimeError):
        yield
        return
    try:
        yield
    finally:
        for each in SIGNALS:
            loop.remove_signal_handler(each)
