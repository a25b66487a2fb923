"""How tau trades retrievals against fidelity on the default model: pass keys in 4,000 to 6,000 tokens of real prose.

Each document is taken in once; its keys and values are loaded into a cache for each setting, which then decodes the
tokens that full attention generated. Run: python scripts/tau.py [--unit-size 8] [--budget 512]
"""

import argparse
from dataclasses import dataclass
from pydoc_data.topics import topics

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel, PreTrainedTokenizerBase

from louiskv import LouisKV, LouisKVCache, attach, models
from louiskv.cache import passing

# Length of the document, depth of the fact, name and key: cases in which full attention finds the key.
CASES = [(6000, 0.5, "Rotterdam", "27611"), (6000, 0.8, "Oslo", "18271"), (4000, 0.5, "Turin", "43432")]
TAUS = [0.7, 0.8, 0.85, 0.9, 0.95, 1.0]
NUM_OUTPUT = 60


@dataclass(frozen=True)
class Case:
    """A document taken in, and what full attention says after it."""

    key: str
    states: list[tuple[Tensor, Tensor]]
    output: Tensor
    log_probs: Tensor


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--unit-size", type=int, default=16)
    parser.add_argument("--budget", type=int, default=512)
    options = parser.parse_args()
    model, tokenizer = models.load()
    ids = tokenizer("\n\n".join(topics.values()), verbose=False, add_special_tokens=False)["input_ids"]
    cases = [
        full_attention(model, tokenizer, ids[number * 8000 :][:length], depth, city, key)
        for number, (length, depth, city, key) in enumerate(CASES)
    ]
    print("tau   retrievals/step  KL to full  same top token  key found")
    for tau in TAUS:
        method = LouisKV(budget=options.budget, unit_size=options.unit_size, tau=tau)
        figures = torch.tensor([measure(model, tokenizer, case, method) for case in cases]).mean(0).tolist()
        print("{:<5} {:<16.2f} {:<11.4f} {:<15.3f} {:.2f}".format(tau, *figures), flush=True)


@torch.inference_mode()
def full_attention(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, ids: list[int], depth: float, city: str, key: str
) -> Case:
    """Take in a document with a fact, ask for it, and keep what full attention generates."""
    cut = int(depth * len(ids))
    fact = f"\n\nThe secret pass key of the vault in {city} is {key}. Remember it.\n\n"
    question = f"\n\nWhat is the secret pass key of the vault in {city}? Answer with the number."
    text = str(tokenizer.decode(ids[:cut])) + fact + str(tokenizer.decode(ids[cut:])) + question
    message = [{"role": "user", "content": text}]
    rendered = str(tokenizer.apply_chat_template(message, add_generation_prompt=True, tokenize=False))
    prompt = torch.tensor([tokenizer(rendered, add_special_tokens=False)["input_ids"]])
    cache = DynamicCache(config=model.config)
    output = model.generate(  # type: ignore[operator]
        prompt, **passing(model, cache), max_new_tokens=NUM_OUTPUT, min_new_tokens=NUM_OUTPUT, do_sample=False
    )[:, prompt.shape[1] :]
    cache.crop(prompt.shape[1] - cache.get_seq_length())
    states = [(layer.keys.clone(), layer.values.clone()) for layer in cache.layers]  # type: ignore[union-attr]
    log_probs = torch.log_softmax(model(output, **passing(model, cache)).logits[0], dim=-1)
    return Case(key, states, output, log_probs)


@torch.inference_mode()
def measure(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, case: Case, method: LouisKV
) -> tuple[float, float, float, float]:
    """Retrievals of a step, KL divergence from full attention, agreement of the likeliest token, key found."""
    kv_cache = LouisKVCache(model.config, method)
    for layer in kv_cache.managed:
        layer.load(*case.states[layer.index])
    with attach(model, method):
        steps = [model(token, **passing(model, kv_cache)).logits[0, -1] for token in case.output.split(1, dim=1)]
    log_probs = torch.log_softmax(torch.stack(steps), dim=-1)
    divergence = (case.log_probs.exp() * (case.log_probs - log_probs)).sum(-1).mean()
    top = log_probs.argmax(-1)
    agreement = (top == case.log_probs.argmax(-1)).float().mean()
    found = case.key in str(tokenizer.decode(top[:24]))
    return kv_cache.report().to_dict()["retrievals_per_step"], float(divergence), float(agreement), float(found)


if __name__ == "__main__":
    main()
