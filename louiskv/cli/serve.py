"""`louiskv serve`: an OpenAI-compatible server, with a page that shows what the cache does."""

import asyncio
import socket
from importlib.util import find_spec
from typing import Annotated, Any

import typer
from rich.console import Console
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from louiskv.cli.failures import ServerError, UsageError
from louiskv.cli.loading import load, ready
from louiskv.cli.options import FleetChoice, MethodChoice, ModelChoice, takes_fleet, takes_method, takes_model
from louiskv.cli.prompts import size_of
from louiskv.cli.serve_ray import check_ray, serve_fleet
from louiskv.engine import Engine
from louiskv.errors import DeviceMemoryError, HostMemoryError
from louiskv.methods import Method
from louiskv.models import name_of
from louiskv.plan import plan
from louiskv.telemetry import format_bytes

app = typer.Typer(add_completion=False, rich_markup_mode="markdown")

PACKAGES = {"fastapi": "fastapi", "jinja2": "jinja2", "openai": "openai", "prometheus_client": "prometheus-client"}
SERVER, MEMORY, LIMITS = "Server", "Rows and memory", "Limits"
LOCAL = ("127.0.0.1", "localhost", "::1")

HOST = "Address to listen at; any other than this machine's own should have a key."
PORT = "Port; 0 takes a free one."
KEY = "What clients must give as their API key."
ORIGIN = "Web page that may ask from a browser, such as https://example.org, or *; repeatable."
GRACE = "Seconds that running answers have after SIGTERM or Ctrl-C."
NAME = "Name by which clients know the model; the model's own unless given."
ROWS = "Answers that are decoded together at the most."
MAX_LENGTH = "Tokens of prompt and answer at the most; what the model has positions for unless given."
HOST_MEMORY = "Host memory for keys and values, such as 8G; nine tenths of what is free unless given."
DEVICE_MEMORY = "Device memory for keys and values, such as 2G; nine tenths of what is free unless given."
KEPT_MEMORY = "Memory for conversations that may go on, such as 2G; a quarter of the host memory unless given."
CHUNK = "Tokens of a prompt that are taken in between two steps of the answers that run; 512, on a GPU 8192."
QUEUE = "Requests that may wait beside those for whom a row is free; more are answered 429."
MAX_PROMPT = "Tokens of a prompt at the most; what fits into --max-length unless given."
MAX_BODY = "Size of a request's body at the most."


@app.command()
@takes_method
@takes_model
@takes_fleet
def serve(
    method: MethodChoice,
    model: ModelChoice,
    fleet: FleetChoice,
    host: Annotated[str, typer.Option(help=HOST, rich_help_panel=SERVER)] = "127.0.0.1",
    port: Annotated[int, typer.Option(help=PORT, min=0, max=65535, metavar="N", rich_help_panel=SERVER)] = 8000,
    api_key: Annotated[
        str | None, typer.Option(help=KEY, envvar="LOUISKV_API_KEY", metavar="KEY", rich_help_panel=SERVER)
    ] = None,
    cors: Annotated[list[str], typer.Option(help=ORIGIN, metavar="ORIGIN", rich_help_panel=SERVER)] = [],  # noqa: B006
    grace: Annotated[float, typer.Option(help=GRACE, min=0, metavar="S", rich_help_panel=SERVER)] = 30.0,
    model_name: Annotated[str | None, typer.Option(help=NAME, metavar="NAME", rich_help_panel=SERVER)] = None,
    rows: Annotated[int, typer.Option(help=ROWS, min=1, metavar="N", rich_help_panel=MEMORY)] = 8,
    max_length: Annotated[int | None, typer.Option(help=MAX_LENGTH, min=2, metavar="N", rich_help_panel=MEMORY)] = None,
    host_memory: Annotated[str | None, typer.Option(help=HOST_MEMORY, metavar="SIZE", rich_help_panel=MEMORY)] = None,
    device_memory: Annotated[
        str | None, typer.Option(help=DEVICE_MEMORY, metavar="SIZE", rich_help_panel=MEMORY)
    ] = None,
    kept_memory: Annotated[str | None, typer.Option(help=KEPT_MEMORY, metavar="SIZE", rich_help_panel=MEMORY)] = None,
    prefill_chunk: Annotated[int | None, typer.Option(help=CHUNK, min=3, metavar="N", rich_help_panel=MEMORY)] = None,
    queue: Annotated[int, typer.Option(help=QUEUE, min=1, metavar="N", rich_help_panel=LIMITS)] = 64,
    max_prompt: Annotated[int | None, typer.Option(help=MAX_PROMPT, min=1, metavar="N", rich_help_panel=LIMITS)] = None,
    max_body: Annotated[str, typer.Option(help=MAX_BODY, metavar="SIZE", rich_help_panel=LIMITS)] = "16M",
) -> None:
    """Answer OpenAI's API at /v1, with a page at / that shows what the cache does.

    louiskv serve --method louiskv_plus --budget 1024 --port 8000

    SIGTERM or Ctrl-C ends it in good order, a second one at once.
    """
    check_extra()
    fleet.check()
    built = method.build()
    settings: dict[str, Any] = {
        "host_memory": size_of("--host-memory", host_memory),
        "device_memory": size_of("--device-memory", device_memory),
        "kept_memory": size_of("--kept-memory", kept_memory),
        "rows": rows,
        "max_length": max_length,
        "prefill_chunk": prefill_chunk,
        "queue": queue,
    }
    sizes = size_of("--max-body", max_body) or 0, max_prompt
    shown: dict[str, Any] = {
        "name": model_name,
        "api_key": _checked_key(api_key),
        "origins": tuple(cors),
        "grace": grace,
    }
    console = Console(stderr=True)
    if fleet.ray:
        check_ray()
    # Before the model is loaded, which takes longer than to learn that the port is taken. A cluster may have it itself.
    bound = _bound(host, 0 if fleet.ray_address else port)
    if shown["api_key"] is None and host not in LOCAL:
        _say(console, f"warning: anyone who reaches {host} may ask: give --api-key or LOUISKV_API_KEY.", "yellow")
    try:
        if fleet.ray:
            bound.close()
            serve_fleet(fleet, model, built, settings, sizes, address=(host, port), console=console, **shown)
        else:
            _serve_here(model, built, settings, sizes, bound=bound, console=console, **shown)
    finally:
        bound.close()


def _serve_here(
    model: ModelChoice,
    method: Method,
    settings: dict[str, Any],
    sizes: tuple[int, int | None],
    *,
    bound: socket.socket,
    console: Console,
    name: str | None,
    **shown: Any,
) -> None:
    """Serve from this process."""
    loaded, words = load(model, console)
    method_here = ready(loaded, method, console)
    with Engine(loaded, words, method_here, impl=model.impl, **settings) as engine:
        _tell_plan(console, loaded, method_here, engine, settings["rows"])
        _run(engine, words, name or name_of(model.name), method_here, bound, sizes=sizes, **shown)
        engine.stop(finish=False)


def _run(
    engine: Engine,
    words: PreTrainedTokenizerBase,
    name: str,
    method: Method,
    bound: socket.socket,
    *,
    api_key: str | None,
    origins: tuple[str, ...],
    grace: float,
    sizes: tuple[int, int | None],
) -> None:
    from louiskv.serving.app import make_app
    from louiskv.serving.desk import Limits
    from louiskv.serving.door import Door
    from louiskv.serving.life import Life
    from louiskv.serving.prompts import Prompts
    from louiskv.serving.server import address_of
    from louiskv.serving.server import serve as answer

    life = Life()
    made = make_app(
        engine,
        Prompts(words, engine.end_tokens),
        name,
        method,
        life=life,
        limits=Limits(*sizes),
        api_key=api_key,
        origins=origins,
    )
    address = address_of(bound)

    def on_ready(_: object) -> None:
        print(f"Serving {name} with {type(method).__name__} at {address} (API at {address}/v1)", flush=True)

    asyncio.run(answer(Door(made, keyless=api_key is None), bound, life, grace, on_ready))


def check_extra() -> None:
    """Raise `UsageError` if what the server needs is not installed."""
    missing = [package for module, package in PACKAGES.items() if find_spec(module) is None]
    missing += ["uvicorn"] if find_spec("uvicorn") is None else []
    if missing:
        raise UsageError(f"The server needs {' and '.join(missing)}: pip install 'louiskv[serve]'")


def _checked_key(key: str | None) -> str | None:
    from louiskv.serving.guard import is_key

    if key is None:
        return None
    key = key.strip()
    if not is_key(key):
        raise UsageError("--api-key is empty or has letters that a header cannot have: give plain letters and digits.")
    return key


def _bound(host: str, port: int) -> socket.socket:
    from louiskv.serving.server import listen_at

    try:
        return listen_at(host, port)
    except OSError as error:
        way_out = "Give another --port, or 0 for a free one." if port else "Give another --host."
        raise ServerError(f"Nothing can listen at {host} port {port}: {error.strerror or error}. {way_out}") from error


def _tell_plan(console: Console, model: PreTrainedModel, method: Method, engine: Engine, rows: int) -> None:
    """Say what memory the longest sequences need, and refuse to begin where not even one fits."""
    try:
        engine.check_length(engine.max_length)
    except (HostMemoryError, DeviceMemoryError) as error:
        raise type(error)(f"{error} A lower --max-length or more memory lets the server begin.") from error
    config, dtype = model.config, model.dtype
    one = plan(config, method, engine.max_length, dtype=dtype)
    text = (
        f"Up to {rows} rows of {engine.max_length} tokens, each {format_bytes(one.device_bytes)} on the device and "
        f"{format_bytes(one.host_bytes)} on the host ({one.device_share:.1%} of full attention on the device); "
        f"{format_bytes(engine.host_memory)} of host memory in all, "
        f"{format_bytes(engine.kept_memory)} of it for kept conversations."
    )
    _say(console, text, "dim")


def _say(console: Console, text: str, style: str) -> None:
    console.print(text, style=style, markup=False, highlight=False, soft_wrap=True)
