"""The app: its subcommands, each imported when it is called, and how errors end a run."""

import sys
import traceback
from importlib import import_module
from typing import Annotated, Any

import typer
from typer.core import TyperGroup
from typer.main import get_command

from louiskv import __version__
from louiskv.cli.failures import exit_code
from louiskv.cli.ranks import as_one, check_command, is_alone, tell
from louiskv.errors import LouisKVError

# Subcommands by name with their line in `louiskv --help`; each is the `app` of the module of its name.
COMMANDS = {
    "generate": "Answer a prompt, or a question about a document.",
    "chat": "Talk with a model, several turns on one cache.",
    "serve": "Answer OpenAI's API, many requests at a time, with a page that shows what the cache does.",
    "batch": "Answer a file of requests, here or on a cluster; each line has an answer or an error.",
    "methods": "List the methods: paper, what each keeps where, settings with their defaults.",
    "plan": "Work out the memory of each tier before anything is loaded.",
    "doctor": "Show versions, devices, and which implementation of each operation can run here.",
    "eval": "Score methods on tasks, and measure how far they are from full attention.",
    "probe": "Look inside attention: what methods attend to beside full attention.",
    "calibrate": "Choose for each layer of a model when LouisKV retrieves.",
    "report": "Draw what lies in a folder of results, as one page of HTML.",
    "bench": "Measure decoding, prefill and a server under load, methods side by side, and single operations.",
    "demo": "Find a pass key in a long document with full attention and with LouisKV.",
}

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


class Commands(TyperGroup):
    """A group that imports a subcommand when it is called, so that help and wrong usage need no model library."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Put the real subcommand in the place of the one that only stands in the help."""
        name, _, rest = super().resolve_command(ctx, args)
        if name is not None:
            check_command(name)
        return name, get_command(import_module(f"louiskv.cli.{name}").app), rest

    def main(self, *args: Any, standalone_mode: bool = True, **extra: Any) -> Any:
        """Run and exit: 2 for wrong usage, 1 for a failure, 130 after Ctrl-C."""
        try:
            with as_one():
                code = super().main(*args, **{**extra, "standalone_mode": False})
            sys.exit(code)
        except typer.TyperException as error:
            message, code = error.format_message(), error.exit_code
        except LouisKVError as error:
            message, code = str(error), exit_code(error)
        except Exception:
            if is_alone():
                raise
            message, code = traceback.format_exc(), 1
        # A group called without a subcommand has shown its help, and has nothing to add.
        if message:
            tell(f"error: {message}")
        sys.exit(code)


@app.callback(cls=Commands, invoke_without_command=True)
def louiskv(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Show the version and exit.")] = False,
) -> None:
    """Decode over long prompts and outputs with a small, fixed part of the KV cache on the device."""
    if version:
        print(f"louiskv {__version__}")
    elif context.invoked_subcommand is None:
        print(context.get_help())


def _stand_in() -> None:
    """Never called: see `Commands.resolve_command`."""


for _name, _help in COMMANDS.items():
    app.command(_name, help=_help)(_stand_in)
