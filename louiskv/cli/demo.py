"""`louiskv demo`: one long document, one question, with full attention and with a method."""

import json
import re
from pydoc_data.topics import topics
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table
from transformers import PreTrainedTokenizerBase

from louiskv.cli.answering import Answer, speaker
from louiskv.cli.failures import AnswersDifferError
from louiskv.cli.loading import load, versions
from louiskv.cli.options import MethodChoice, ModelChoice, Sampling, takes_method, takes_model
from louiskv.cli.prompts import check_fits, room
from louiskv.cli.tables import print_report, seconds, table
from louiskv.errors import SettingsError
from louiskv.methods.full import Full
from louiskv.prompts import Request, encode
from louiskv.telemetry import Report, format_bytes

app = typer.Typer(add_completion=False, rich_markup_mode="markdown")

FACT = "The secret pass key of the vault in Rotterdam is 48213. Remember it."
QUESTION = "What is the secret pass key of the vault in Rotterdam? Answer with the number."
SAMPLING = Sampling(max_new_tokens=24)
FULL = "full attention"

Results = dict[str, tuple[Answer, Report]]


@app.command()
@takes_method
@takes_model
def demo(
    method: MethodChoice,
    model: ModelChoice,
    context: Annotated[int, typer.Option(help="Tokens of the document.", metavar="N")] = 6000,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Find a fact in a long document, with full attention and with a method; fails if their answers differ.

    The document is Python's own documentation with one sentence put into its middle. Takes about a minute. The budget
    is 512 tokens unless --budget or --preset says otherwise.
    """
    methods = {FULL: Full(), method.name: method.build(budget=512)}
    console = Console(stderr=True)
    loaded, tokenizer = load(model, console)
    ids = encode(tokenizer, Request(document(tokenizer, context), QUESTION))
    check_fits(len(ids), room(loaded.config, SAMPLING.max_new_tokens), "Give a smaller --context.")
    _say(console, f"{len(ids)} tokens of Python's documentation, and in their middle: {FACT!r}\nAsked: {QUESTION!r}")
    results: Results = {}
    for name, built in methods.items():
        _say(console, f"\n{name} ...")
        with speaker(loaded, tokenizer, built, model.impl, console) as talk:
            answer = talk.answer(ids, SAMPLING, write=lambda _: None)
            results[name] = answer, talk.kv_cache.report()
        if answer.interrupted:
            raise typer.Exit(130)
        _say(console, f"answers: {answer.text}")
        print_report(console, results[name][1])
    answers = {name: first_sentence(answer.text) for name, (answer, _) in results.items()}
    same = len(set(answers.values())) == 1
    if as_json:
        runs = {name: {**answer.to_dict(), "report": report.to_dict()} for name, (answer, report) in results.items()}
        print(json.dumps({"same": same, "model": model.name, "versions": versions(), "runs": runs}))
    else:
        Console().print(_comparison(results), markup=False, highlight=False)
    if not same:
        told = "; ".join(f"{name} says {text!r}" for name, text in answers.items())
        raise AnswersDifferError(f"The answers differ: {told}. A larger --budget attends to more.")


def document(tokenizer: PreTrainedTokenizerBase, num_tokens: int) -> str:
    """Python's documentation, at least `num_tokens` tokens of it in whole paragraphs, with the fact in its middle.

    Raises:
        SettingsError: There is not so much of it, or too little is wanted.
    """
    paragraphs = "\n\n".join(topics.values()).split("\n\n")
    parts = [f"{paragraph}\n\n" for paragraph in paragraphs]
    counts = [len(ids) for ids in tokenizer(parts, add_special_tokens=False)["input_ids"]]
    if not 1 <= num_tokens <= sum(counts):
        raise SettingsError(f"context={num_tokens} is not allowed: give a number of tokens from 1 to {sum(counts)}.")
    taken: list[str] = []
    total, middle = 0, 0
    for paragraph, count in zip(paragraphs, counts, strict=True):
        if total >= num_tokens:
            break
        taken.append(paragraph)
        total += count
        if total <= num_tokens // 2:
            middle = len(taken)
    return "\n\n".join([*taken[:middle], FACT, *taken[middle:]])


def first_sentence(text: str) -> str:
    """The text up to its first line break or the end of its first sentence."""
    return re.split(r"\n|(?<=\.)\s", text.strip(), maxsplit=1)[0].strip()


def _comparison(results: Results) -> Table:
    shown = table("", *results)
    answers, reports = zip(*results.values(), strict=True)
    shown.add_row("answer", *(answer.text.strip() for answer in answers))
    shown.add_row("KV cache on the device", *(format_bytes(report.device_bytes) for report in reports))
    shown.add_row("  share of full attention's", *(f"{report.device_share:.1%}" for report in reports))
    shown.add_row("KV cache on the host", *(format_bytes(report.host_bytes) for report in reports))
    shown.add_row("time to the first token", *(seconds(answer.first_token_seconds) for answer in answers))
    shown.add_row("time of each further token", *(seconds(answer.per_token_seconds) for answer in answers))
    return shown


def _say(console: Console, text: str) -> None:
    console.print(text, markup=False, highlight=False)
