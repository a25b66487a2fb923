"""`louiskv generate`: answer one prompt."""

import json
import sys
from typing import Annotated

import typer
from rich.console import Console

from louiskv.cli.answering import Answer, speaker
from louiskv.cli.failures import UsageError
from louiskv.cli.loading import load, versions
from louiskv.cli.options import MethodChoice, ModelChoice, Sampling, takes_method, takes_model, takes_sampling
from louiskv.cli.prompts import check_fits, read_text, room, truncate
from louiskv.cli.tables import print_report, seconds
from louiskv.prompts import Request, encode

app = typer.Typer(add_completion=False, rich_markup_mode="markdown")

PROMPT = "What to say to the model; standard input if it is piped."
DOCUMENT = "File that the prompt begins with; - is standard input."
QUESTION = "What to ask about the document; it follows it."
RAW = "Give the text to the model as it is, without its chat template."
TRUNCATE = "Cut the middle out of a text that is too long for the model; otherwise it is refused."
JSON = "Print one JSON object at the end, and nothing else, on standard output."
REPORT = "Print what the cache did, on standard error."


@app.command()
@takes_method
@takes_model
@takes_sampling
def generate(
    method: MethodChoice,
    model: ModelChoice,
    sampling: Sampling,
    prompt: Annotated[str | None, typer.Argument(help=PROMPT, show_default=False)] = None,
    document: Annotated[str | None, typer.Option(metavar="FILE", help=DOCUMENT)] = None,
    question: Annotated[str | None, typer.Option(metavar="TEXT", help=QUESTION)] = None,
    raw: Annotated[bool, typer.Option("--raw", help=RAW)] = False,
    cut: Annotated[bool, typer.Option("--truncate", help=TRUNCATE)] = False,
    as_json: Annotated[bool, typer.Option("--json", help=JSON)] = False,
    report: Annotated[bool, typer.Option(help=REPORT)] = True,
) -> None:
    """Answer a prompt, or a question about a document.

    The text is printed as it comes; Ctrl-C ends it and keeps what there is.

    louiskv generate "Why is the sky blue?" --max-new-tokens 64

    louiskv generate --document notes.txt --question "Who came?" --budget 512

    cat notes.txt | louiskv generate --document - --question "Who came?" --json
    """
    built = method.build()
    request = _request(prompt, document, question, raw)
    console = Console(stderr=True)
    loaded, tokenizer = load(model, console)
    limit = room(loaded.config, sampling.max_new_tokens)
    ids, num_cut = truncate(tokenizer, request, limit) if cut else (encode(tokenizer, request), 0)
    check_fits(len(ids), limit, "Give --truncate to cut the middle out of it, or a shorter text.")
    if num_cut:
        console.print(f"note: {num_cut} tokens were cut out of the middle of the text", highlight=False)
    with speaker(loaded, tokenizer, built, model.impl, console) as talk:
        try:
            answer = talk.answer(ids, sampling, write=_ignore if as_json else _write)
        finally:
            # Also when it fails: what was printed so far stays on a line of its own.
            if not as_json:
                print(flush=True)
        figures = talk.kv_cache.report(all_ranks=True)
    if as_json:
        run = {"model": model.name, "device": str(loaded.device), "dtype": str(loaded.dtype).removeprefix("torch.")}
        used = {"method": method.name, "settings": figures.settings, "impl": model.impl, "versions": versions()}
        print(json.dumps({**answer.to_dict(), "truncated_tokens": num_cut, **run, **used, "report": figures.to_dict()}))
    elif report:
        print_report(console, figures, ("time", timing(answer)))
    if answer.interrupted:
        raise typer.Exit(130)


def timing(answer: Answer) -> str:
    """The times of an answer in one line."""
    if answer.first_token_seconds is None:
        return "no token was generated"
    first = f"{seconds(answer.first_token_seconds)} to the first token"
    return first if answer.per_token_seconds is None else f"{first}, then {seconds(answer.per_token_seconds)} a token"


def _request(prompt: str | None, document: str | None, question: str | None, raw: bool) -> Request:
    """What the user asked.

    Raises:
        UsageError: It is nothing, or too much.
    """
    if document is not None:
        if prompt is not None and question is not None:
            raise UsageError("Give the question as an argument or as --question, not both.")
        return Request(read_text(document), prompt if question is None else question, raw)
    if question is not None:
        raise UsageError("--question asks about a document: give --document too, or the question as a prompt.")
    if prompt is None and not sys.stdin.isatty():
        prompt = sys.stdin.read()
    if prompt is None or not prompt.strip():
        raise UsageError("There is nothing to answer: give a prompt, or --document and --question.")
    return Request(prompt, raw=raw)


def _write(text: str) -> None:
    print(text, end="", flush=True)


def _ignore(text: str) -> None:
    """With --json nothing is printed before the end."""
