"""Tasks put to methods: what they answer, what it scores, how far it goes along with full attention's answer."""

import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain

from louiskv.attach import attach
from louiskv.contestants import Contestant
from louiskv.evaluation.batches import answer, padded
from louiskv.evaluation.grid import Asked
from louiskv.evaluation.replay import Prompt, take_in
from louiskv.evaluation.runner import Evaluation, Record, watch
from louiskv.evaluation.tasks import Sample, Task
from louiskv.methods.full import Full
from louiskv.prompts import Request, encode


@dataclass(frozen=True)
class _Batch:
    """Samples that are answered together."""

    task: Task
    samples: list[Sample]
    rows: list[list[int]]
    spoken: list[list[int]]
    max_new_tokens: int


def ask(evaluation: Evaluation, asked: Asked, contestants: list[Contestant]) -> Iterator[Record]:
    """Put the questions to all methods; yields each record, new or known, when it is in the file.

    All samples are drawn before the first is asked, so that what cannot be asked is refused at once.

    Raises:
        SettingsError: The model has too few positions for a task, or the context or the text is too short for it.
    """
    batches = []
    for name, context, numbers in asked.batches:
        task = asked.tasks[name]
        identity = evaluation.identity(
            task=name, task_settings=repr(task), context=context, seed=asked.seed, samples=numbers
        )
        new = evaluation.lacks(identity, contestants)
        batch = _drawn(evaluation, task, name, context, asked.seed, numbers) if new else None
        batches.append((f"{name} at {context}", identity, batch))
    return chain.from_iterable(_asked(evaluation, *each, contestants) for each in batches)


def _asked(
    evaluation: Evaluation, what: str, identity: Record, batch: _Batch | None, contestants: list[Contestant]
) -> Iterator[Record]:
    known = evaluation.known(identity, contestants)
    full = next((record for record in known.values() if record and record["class"] == Full.__name__), None)
    expected = None if full is None else full["said"]
    prompt = None
    for each, record in known.items():
        if record is None:
            assert batch is not None
            started = time.perf_counter()
            evaluation.tell(f"{what}, {each.name}")
            prompt = prompt or take_in(evaluation.model, *padded(batch.rows, evaluation.model.device))
            said, figures = _answered(evaluation, each, batch, prompt)
            if isinstance(each.method, Full):
                expected = said
            figures["agreement"] = None if expected is None else list(map(agreement, said, expected))
            record = evaluation.add("task", identity, each, started, figures)
        evaluation.done += 1
        yield record


def _drawn(evaluation: Evaluation, task: Task, name: str, context: int, seed: int, numbers: list[int]) -> _Batch:
    around = len(encode(evaluation.tokenizer, Request("")))
    samples = [
        task.numbered(number, evaluation.haystack, context - around, f"{seed} {name} {context}") for number in numbers
    ]
    rows = [
        [*encode(evaluation.tokenizer, Request(sample.prompt, raw=sample.raw)), *evaluation.ids(sample.prefix)]
        for sample in samples
    ]
    spoken = [evaluation.ids(sample.spoken) for sample in samples]
    max_new_tokens = max(sample.max_new_tokens for sample in samples)
    needed = max(map(len, rows)) + max(map(len, spoken)) + max_new_tokens
    what = f"The task {name} at a context of {context}"
    evaluation.check_positions(what, needed, "Give a smaller --context or --max-new-tokens.")
    return _Batch(task, samples, rows, spoken, max_new_tokens)


def _answered(
    evaluation: Evaluation, contestant: Contestant, batch: _Batch, prompt: Prompt
) -> tuple[list[list[int]], Record]:
    """What a method says, and the figures of its record."""
    model, task = evaluation.model, batch.task
    with attach(model, contestant.method, impl=evaluation.impl) as kv_cache:
        prompt.replay(kv_cache)
        told = watch(kv_cache)
        said = answer(model, kv_cache, prompt, batch.spoken, batch.max_new_tokens, evaluation.ends)
    outputs = [str(evaluation.tokenizer.decode(tokens, skip_special_tokens=True)) for tokens in said]
    return said, {
        "scenario": task.scenario,
        "scores": [task.score(sample, output) for sample, output in zip(batch.samples, outputs, strict=True)],
        "outputs": outputs,
        "said": said,
        "answers": [list(sample.answers) for sample in batch.samples],
        "tokens": [len(row) for row in batch.rows],
        **told(),
    }


def agreement(said: list[int], expected: list[int]) -> float:
    """The share of full attention's answer that is said before the first difference.

    Args:
        said: Tokens of an answer, without its end.
        expected: Those of full attention's.
    """
    pairs = zip(said, expected, strict=False)
    same = next((at for at, (own, full) in enumerate(pairs) if own != full), min(len(said), len(expected)))
    # To go on where full attention ended is a difference, too: its end is the token that was not said.
    goes_on = same == len(expected) < len(said)
    return same / (len(expected) + goes_on) if expected or goes_on else 1.0
