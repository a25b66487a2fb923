"""What a task takes from end to end, made of the first token and of the steps that were measured."""

from collections.abc import Iterable
from dataclasses import dataclass

from louiskv.bench.runner import Record


@dataclass(frozen=True)
class Scenario:
    """A task (section 5.3 of arXiv 2510.11292 has three kinds; the sizes here are ours).

    Attributes:
        name: The kind.
        prompt: Tokens of the prompt.
        output: Tokens of the answer.
        decoded_at: Context at which its steps were measured, about the mean of those that it has.
    """

    name: str
    prompt: int
    output: int
    decoded_at: int


SCENARIOS = (
    Scenario("long input", 32768, 512, 32768),
    Scenario("long output", 1024, 16384, 8192),
    Scenario("long input and output", 32768, 16384, 32768),
)
# Whose speed is told against whose.
RIVALS = {"louiskv": "arkvale", "louiskv_plus": "freekv"}


def end_to_end(records: Iterable[Record]) -> list[Record]:
    """Seconds of each scenario for each method and batch, where all that it is made of was measured.

    Prompts are taken in one after the other, each as a whole.
    """
    measured = [record for record in records if "left_out" not in record and "chunk" not in record]
    decode = {_at(each): each for each in measured if each["kind"] == "large decode"}
    first = {_at(each): each for each in measured if each["kind"] == "large prefill"}
    made = []
    for (model, method, batch, context), step in decode.items():
        for scenario in SCENARIOS:
            prefill = first.get((model, method, 1, scenario.prompt))
            if context != scenario.decoded_at or prefill is None:
                continue
            taking_in = batch * prefill["first_token_seconds"]
            decoding = scenario.output * step["ms_per_token"] / 1000
            made.append(
                {
                    "scenario": scenario.name,
                    "model": model,
                    "method": method,
                    "batch": batch,
                    "prompt": scenario.prompt,
                    "output": scenario.output,
                    "first_token_seconds": taking_in,
                    "decode_seconds": decoding,
                    "seconds": taking_in + decoding,
                }
            )
    return made


def speed_ups(made: list[Record]) -> list[Record]:
    """The same with how many times faster each is than its rival and than full attention; None where unknown."""
    seconds = {(each["scenario"], each["model"], each["batch"], each["method"]): each["seconds"] for each in made}

    def against(each: Record, other: str | None) -> float | None:
        base = seconds.get((each["scenario"], each["model"], each["batch"], other or ""))
        return None if base is None else base / each["seconds"]

    return [
        {**each, "rival": _rival(each["method"]), "over_rival": against(each, _rival(each["method"]))}
        | {"over_full": against(each, "full")}
        for each in made
    ]


def _rival(method: str) -> str | None:
    return RIVALS.get(method.split(":")[0])


def _at(record: Record) -> tuple[str, str, int, int]:
    return record["model"], record["method"], record["batch"], record["context"]
