"""`louiskv chat`: several turns on one cache."""

import sys
from collections.abc import Iterator
from contextlib import suppress
from typing import Annotated

import typer
from rich.console import Console

from louiskv.cli.answering import speaker
from louiskv.cli.conversation import Conversation
from louiskv.cli.generate import timing
from louiskv.cli.loading import load
from louiskv.cli.options import MethodChoice, ModelChoice, Sampling, takes_method, takes_model, takes_sampling
from louiskv.cli.prompts import read_text
from louiskv.cli.tables import print_report
from louiskv.errors import LouisKVError

app = typer.Typer(add_completion=False, rich_markup_mode="markdown")

DOCUMENT = "File that goes before the first question."
RAW = "Use no chat template: each line follows what was said before."
COMMANDS = "/report shows what the cache did, /reset forgets what was said, /quit or Ctrl-D ends"


@app.command()
@takes_method
@takes_model
@takes_sampling
def chat(
    method: MethodChoice,
    model: ModelChoice,
    sampling: Sampling,
    document: Annotated[str | None, typer.Option(metavar="FILE", help=DOCUMENT)] = None,
    raw: Annotated[bool, typer.Option("--raw", help=RAW)] = False,
) -> None:
    """Talk with a model, several turns on one cache.

    /report shows what the cache did, /reset forgets what was said, /quit or Ctrl-D ends. Ctrl-C stops an answer. Where
    standard input is not a terminal, each of its lines is a turn.
    """
    built = method.build()
    before = None if document is None else read_text(document)
    console = Console(stderr=True)
    loaded, tokenizer = load(model, console)
    with speaker(loaded, tokenizer, built, model.impl, console) as talk:
        conversation = Conversation(talk, before, raw)
        for line in _lines(console):
            if line == "/quit":
                break
            if line == "/reset":
                conversation.reset()
                _say(console, "Forgotten.")
            elif line == "/report":
                print_report(console, talk.kv_cache.report())
            elif line.startswith("/"):
                _say(console, f"There is no command {line}: {COMMANDS}.")
            else:
                _turn(conversation, line, sampling, console)


def _turn(conversation: Conversation, text: str, sampling: Sampling, console: Console) -> None:
    """Ask, print the answer as it comes, and say how it went; in a terminal the talk goes on after an error."""
    try:
        answer = conversation.ask(text, sampling, lambda piece: print(piece, end="", flush=True))
    except LouisKVError as error:
        if not sys.stdin.isatty():
            raise
        console.print(f"error: {error}", markup=False, highlight=False)
        return
    print(flush=True)
    _say(console, timing(answer))
    if answer.interrupted:
        kept = "the answer so far stays in the talk" if answer.tokens else "the question is forgotten"
        _say(console, f"Stopped; {kept}.")


def _lines(console: Console) -> Iterator[str]:
    """What the user types, line by line, without empty lines."""
    interactive = sys.stdin.isatty()
    if interactive:
        # Importing it is what gives `input` its line editing.
        with suppress(ImportError):
            import readline  # noqa: F401
        _say(console, f"{COMMANDS[0].upper()}{COMMANDS[1:]}.")
    while True:
        try:
            line = input("> " if interactive else "").strip()
        except EOFError:
            if interactive:
                print()
            return
        except KeyboardInterrupt:
            if not interactive:
                raise
            _say(console, "\n/quit or Ctrl-D ends.")
            continue
        if line:
            yield line


def _say(console: Console, text: str) -> None:
    console.print(text, style="dim", markup=False, highlight=False)
