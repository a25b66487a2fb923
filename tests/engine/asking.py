"""A tiny random model whose answers are known, because it can be asked alone."""

from collections.abc import Iterable, Sequence
from functools import cache
from typing import Any

import torch
from tokenizers import Tokenizer
from tokenizers.decoders import ByteLevel as ByteLevelDecoder
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel
from transformers import PreTrainedModel, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from louiskv import LouisKV, Method, attach
from louiskv.cache import LouisKVCache, passing
from louiskv.engine import Answer, Engine, Piece, Request, Sampling
from tests.families import VOCABULARY, tiny

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
CHUNK = 16
# Holds everything, and must choose.
WHOLE = LouisKV(budget=400, sink=3, window=10, unit_size=4, max_segment=6, dense_layers=1)
SMALL = LouisKV(budget=40, sink=3, window=12, unit_size=4, max_segment=8, dense_layers=0, tau=0.3)
# The zero embedding of the padding would tie scores.
GREEDY: dict[str, Any] = {"temperature": 0, "logit_bias": {0: -100.0}, "ignore_eos": True}


def a_model() -> PreTrainedModel:
    return tiny("llama", num_hidden_layers=3).to(DEVICE)  # type: ignore[arg-type]


@cache
def tokenizer() -> PreTrainedTokenizerBase:
    """Each token but the first three is a byte."""
    names = ["<pad>", "<s>", "</s>", *sorted(ByteLevel.alphabet())[: VOCABULARY - 3]]
    model = Tokenizer(BPE({name: number for number, name in enumerate(names)}, []))
    model.decoder = ByteLevelDecoder()
    return PreTrainedTokenizerFast(tokenizer_object=model, pad_token="<pad>", bos_token="<s>", eos_token="</s>")


def engine(method: Method = SMALL, model: PreTrainedModel | None = None, **settings: Any) -> Engine:
    settings = {"rows": 4, "prefill_chunk": CHUNK, "kept_memory": 0, **settings}
    return Engine(model or a_model(), tokenizer(), method, **settings)


def ids(length: int, seed: int = 0) -> list[int]:
    return torch.randint(3, 200, (length,), generator=torch.Generator().manual_seed(seed)).tolist()


def greedily(prompt: Sequence[int], max_tokens: int, **more: Any) -> Request:
    return Request(prompt=prompt, sampling=Sampling(max_tokens=max_tokens, **GREEDY), **more)


def tokens(pieces: Iterable[Piece]) -> list[int]:
    return [token for piece in pieces for token in piece.token_ids]


def ended(answer: Answer) -> tuple[list[int], Piece]:
    """All tokens, and the last piece."""
    pieces = list(answer)
    assert [piece.finish_reason for piece in pieces[:-1]] == [None] * (len(pieces) - 1)
    return tokens(pieces), pieces[-1]


def alone(method: Method, turns: Sequence[Sequence[int]], max_tokens: int) -> list[list[int]]:
    """The answers to turns of one conversation, by a plain loop over a cache of one sequence."""
    model, answers = a_model(), list[list[int]]()
    with torch.no_grad(), attach(model, method) as kv_cache:
        held = LouisKVCache(model.config, kv_cache.method)
        for turn in turns:
            logits = feed(model, held, list(turn) if not answers else [answers[-1][-1], *turn])
            answers.append([])
            for step in range(max_tokens):
                answers[-1].append(int(logits[1:].argmax()) + 1)
                if step < max_tokens - 1:
                    logits = feed(model, held, answers[-1][-1:])
    return answers


def feed(model: PreTrainedModel, kv_cache: LouisKVCache, new: list[int]) -> torch.Tensor:
    """Logits [V] of what comes next, the prompt fed as the engine feeds it."""
    while new:
        size = len(new) if len(new) <= CHUNK + 1 else CHUNK
        known = kv_cache.get_seq_length()
        positions = torch.arange(known, known + size, device=DEVICE)[None]
        part = torch.tensor([new[:size]], device=DEVICE)
        logits = model(input_ids=part, position_ids=positions, **passing(model, kv_cache)).logits[0, -1]
        new = new[size:]
    return logits
