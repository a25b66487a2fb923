"""What each method loses on the default model: facts scattered over real prose, and the prose itself, at one budget.

Four facts lie in each document, and each is asked for twice: in the prompt that holds the document, and in a later
turn, when the document has been taken in already. A fact is found if every digit of its number is the likeliest token
when those before it are given; facts that full attention does not find are left out. The prose that follows a document
is fed token by token. KL is from full attention. Documents are a batch.

Run: python scripts/accuracy.py [--budget 512] [--documents 6] [--output accuracy.jsonl]
"""

import argparse
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from pydoc_data.topics import topics

import torch
from rich.console import Console
from rich.progress import track
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel, PreTrainedTokenizerBase

from louiskv import METHODS, LouisKVCache, Method, attach, models
from louiskv.cache import passing
from louiskv.methods.razor_attention import RazorAttention
from louiskv.provenance import provenance

DEPTHS = (0.1, 0.35, 0.6, 0.85)
FACTS = {
    "The secret pass key of the vault in Oslo is": "What is the secret pass key of the vault in Oslo?",
    "The telephone number of the baker Mr. Hartwell is": "What is the telephone number of the baker Mr. Hartwell?",
    "The number painted on the red locomotive is": "What is the number painted on the red locomotive?",
    "The membership number of Alice in the chess club is": "What is the membership number of Alice in the chess club?",
}
NUM_DIGITS = 5
ASKED = ("asked in the prompt", "asked later")
NUM_ANSWER = 24


@dataclass(frozen=True)
class Text:
    """A batch of prompts of one length with what follows them, and what full attention makes of that.

    Attributes:
        kind: Where the figures belong.
        turns: Parts of the prompt [B, T], taken in one after the other.
        output: [B, steps] tokens fed after it.
        log_probs: [B, steps + 1, vocabulary] of full attention, for the token behind the prompt and each behind it.
        digits: [B, steps + 1] True where the token behind is a digit of the number asked for.
    """

    kind: str
    turns: list[Tensor]
    output: Tensor
    log_probs: Tensor
    digits: Tensor


def main() -> None:
    """Print a row for each method; write all figures as JSON lines."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--budget", type=int, default=512)
    parser.add_argument("--contexts", type=int, nargs="+", default=[6000, 7600])
    parser.add_argument("--documents", type=int, default=6, help="of each length")
    parser.add_argument("--steps", type=int, default=96, help="of prose")
    parser.add_argument("--methods", nargs="+", default=[name for name in METHODS if name != "full_offloaded"])
    parser.add_argument("--dense-layers", type=int, help="the same for all methods; each has its own otherwise")
    parser.add_argument("--output", type=Path, default=Path("accuracy.jsonl"))
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options = parser.parse_args()
    model, tokenizer = models.load(dtype="float32", device=options.device)
    texts = list(documents(model, tokenizer, options.contexts, options.documents, options.steps))
    print(f"{'':<18}{'found':>16}{'KL to full':>30}{'a token of prose':>34}")
    print(f"{'method':<18}{'at once':>9}{'later':>8}{'at once':>12}{'later':>9}{'prose':>9}", end="")
    print(f"{'fetched':>14}{'retrievals':>12}{'device':>9}", flush=True)
    for name in options.methods:
        for method in variants(name, options.budget, options.dense_layers):
            row = compare(model, method, texts)
            print(row_of(name, row), flush=True)
            with options.output.open("a") as lines:
                told = {"method": name, "settings": method.values(), **row}
                lines.write(json.dumps({**told, "contexts": options.contexts, **provenance(model.device)}) + "\n")


def variants(name: str, budget: int, dense_layers: int | None) -> list[Method]:
    """The method at this budget; RazorAttention, whose heads differ, also as its paper has it."""
    if name == "razor_attention":
        return [RazorAttention(), RazorAttention(window=budget - 4, share=0.0)]
    kind = METHODS[name]
    names = {each.name for each in kind.settings()}
    same = {} if dense_layers is None or "dense_layers" not in names else {"dense_layers": dense_layers}
    return [kind(**same, **({"budget": budget} if "budget" in names else {}))]


def row_of(name: str, row: dict[str, float]) -> str:
    """The figures of a method in one line."""
    found = [f"{row[f'{kind} found']:.0f}/{row[f'{kind} facts']:.0f}" for kind in ASKED]
    divergence = [f"{row[f'{kind} kl']:.4f}" for kind in (*ASKED, "prose")]
    moved = f"{row['prose fetched'] / 1024:.0f} KiB"
    return (
        f"{name:<18}{found[0]:>9}{found[1]:>8}{divergence[0]:>12}{divergence[1]:>9}{divergence[2]:>9}"
        f"{moved:>14}{row['prose rate']:>12.2f}{row['prose device']:>9.1%}"
    )


@torch.inference_mode()
def documents(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, contexts: list[int], number: int, steps: int
) -> Iterator[Text]:
    """All texts of all lengths."""

    def tokens(text: str) -> list[int]:
        return list(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])

    prose = tokens("\n\n".join(topics.values()))
    message = [{"role": "user", "content": "@@@"}]
    rendered = str(tokenizer.apply_chat_template(message, add_generation_prompt=True, tokenize=False))
    head, tail = (tokens(part) for part in rendered.split("@@@"))
    generator = torch.Generator().manual_seed(0)
    for context in contexts:
        parts = [prose[each * 8192 :][: context + steps] for each in range(number)]
        ids = torch.tensor(parts, device=model.device)
        yield full_attention(model, "prose", [ids[:, :context]], ids[:, context:], torch.zeros(1, 1, dtype=torch.bool))
        numbers = [[str(int(torch.randint(10000, 99999, (), generator=generator))) for _ in FACTS] for _ in parts]
        told = [
            hide(part[:context], each, shift, tokens)
            for shift, (part, each) in enumerate(zip(parts, numbers, strict=True))
        ]
        for place, question in enumerate(FACTS.values()):
            asked = tokens(f"\n\n{question} Answer with the number.") + tail
            wanted = [each[place] for each in numbers]
            yield from questions(model, tokenizer, [head + each for each in told], asked, wanted)


def hide(prose: list[int], numbers: list[str], shift: int, tokens: Callable[[str], list[int]]) -> list[int]:
    """Prose with a fact at each depth; each document has them in another order."""
    facts = [f"\n\n{fact} {number}. Remember it.\n\n" for fact, number in zip(FACTS, numbers, strict=True)]
    borders = [*(int(depth * len(prose)) for depth in DEPTHS), len(prose)]
    document = prose[: borders[0]]
    for place, (first, last) in enumerate(pairwise(borders)):
        document = document + tokens(facts[(place + shift) % len(facts)]) + prose[first:last]
    return document


def questions(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    told: list[list[int]],
    asked: list[int],
    wanted: list[str],
) -> Iterator[Text]:
    """One question put to all documents, in both ways; documents with which full attention cannot answer go."""
    document = torch.tensor(told, device=model.device)
    question = torch.tensor([asked], device=model.device).expand(len(told), -1)
    prompt = torch.cat([document, question], dim=1)
    output = model.generate(  # type: ignore[operator]
        prompt,
        attention_mask=torch.ones_like(prompt),
        max_new_tokens=NUM_ANSWER,
        min_new_tokens=NUM_ANSWER,
        do_sample=False,
        **passing(model, DynamicCache(config=model.config)),
    )[:, prompt.shape[1] :]
    digits = torch.zeros_like(output, dtype=torch.bool)
    for row, number in enumerate(wanted):
        said = [str(tokenizer.decode(token)) for token in output[row]]
        start = next((at for at in range(NUM_ANSWER) if "".join(said[at : at + NUM_DIGITS]) == number), None)
        if start is not None:
            digits[row, start : start + NUM_DIGITS] = True
    answered = digits.any(1)
    if answered.any():
        document, question, prompt = document[answered], question[answered], prompt[answered]
        for kind, turns in zip(ASKED, ([prompt], [document, question]), strict=True):
            yield full_attention(model, kind, turns, output[answered, :-1], digits[answered])


def full_attention(model: PreTrainedModel, kind: str, turns: list[Tensor], output: Tensor, digits: Tensor) -> Text:
    """What full attention says at each step."""
    cache = DynamicCache(config=model.config)
    logits = [model(turn, **passing(model, cache), logits_to_keep=1).logits for turn in turns][-1:]
    logits.append(model(output, **passing(model, cache)).logits)
    return Text(kind, turns, output, torch.log_softmax(torch.cat(logits, dim=1).float(), dim=-1), digits)


@torch.inference_mode()
def compare(model: PreTrainedModel, method: Method, texts: list[Text]) -> dict[str, float]:
    """The figures of a method over all texts."""
    sums: dict[str, list[float]] = {}

    def note(name: str, *values: float) -> None:
        sums.setdefault(name, []).extend(values)

    started = time.perf_counter()
    with attach(model, method) as kv_cache:
        for text in track(texts, type(method).__name__, console=Console(stderr=True), transient=True):
            kv_cache.reset()
            logits = [model(turn, **passing(model, kv_cache), logits_to_keep=1).logits for turn in text.turns][-1:]
            before = moved(kv_cache)
            logits += [model(token, **passing(model, kv_cache)).logits for token in text.output.split(1, dim=1)]
            log_probs = torch.log_softmax(torch.cat(logits, dim=1).float(), dim=-1)
            divergence = (text.log_probs.exp() * (text.log_probs - log_probs)).sum(-1)
            note(f"{text.kind} kl", *divergence[:, 1:].mean(1).tolist())
            if text.kind in ASKED:
                right = log_probs.argmax(-1) == text.log_probs.argmax(-1)
                note(f"{text.kind} found", *(right | ~text.digits).all(1).float().tolist())
            else:
                report = kv_cache.report()
                note("prose fetched", (moved(kv_cache) - before) / text.output.numel())
                note("prose rate", report.to_dict()["retrievals_per_step"])
                note("prose device", report.device_share)
    figures = {name: sum(values) / len(values) for name, values in sums.items()}
    for kind in ASKED:
        figures[f"{kind} facts"] = len(sums.get(f"{kind} found", []))
        figures[f"{kind} found"] = sum(sums.get(f"{kind} found", []))
    return {**figures, "seconds": time.perf_counter() - started}


def moved(kv_cache: LouisKVCache) -> int:
    """Bytes fetched so far."""
    return sum(layer.state.traffic.fetched_bytes for layer in kv_cache.managed)


if __name__ == "__main__":
    main()
