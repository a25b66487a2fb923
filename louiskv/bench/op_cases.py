"""The operations as a decode step calls them: what each is given, and what it must move and multiply at the least."""

from functools import partial

import torch
from torch import Tensor

from louiskv.bench.case import Case
from louiskv.bench.shapes import BIT_GROUP, NUM_SINKS, RUN, UNIT_SIZE, WINDOW, Inputs, Sizes
from louiskv.bench.window_cases import WINDOW_CASES
from louiskv.ops.attention import Chosen, Rest, attention_with_weights, decode_attention
from louiskv.ops.candidates import UnitTable, best_tokens, count_rest, list_candidates
from louiskv.ops.eviction import choose_victims, merge_similar
from louiskv.ops.kmeans import kmeans
from louiskv.ops.log_sums import log_sums
from louiskv.ops.moving import append_token, fetch_rows, store_rows
from louiskv.ops.partial_attention import partial_attention
from louiskv.ops.selection import (
    agree,
    assign_slots,
    places_of,
    raise_newest,
    score_tokens,
    select_units,
    unit_logits,
    unit_shares,
)
from louiskv.ops.turning import query_cosines, turned

__all__ = ["CASES", "Case"]

SCALING = 0.125
# A prompt of so many tokens is clustered at once, in so many passes.
CHUNK = 8192
ITERATIONS = 5
# A later prompt of so many tokens, and the part of the past that it attends to at once.
QUESTION = 64
PART = 4096
# Tokens that are dropped at once, and the least cosine to be merged.
DROPPED = 16
ALIKE = 0.5

FLOAT, INT, LONG = torch.float32, torch.int32, torch.int64


def _clustered(sizes: Sizes) -> int:
    return min(CHUNK, sizes.num_tokens)


def _part(sizes: Sizes) -> int:
    return min(PART, sizes.num_tokens)


def _products(sizes: Sizes, num: int) -> int:
    """Of each query with `num` vectors as long as a key."""
    return 2 * sizes.num_rows * sizes.shape.group_size * num * sizes.shape.dim


def _query_bytes(sizes: Sizes) -> int:
    return sizes.num_rows * sizes.shape.group_size * sizes.shape.dim * sizes.shape.dtype.itemsize


def _logit_bytes(sizes: Sizes, num_units: int) -> int:
    """Float32 numbers of each query and so many units."""
    return 4 * sizes.num_rows * sizes.shape.group_size * num_units


def _kmeans(inputs: Inputs) -> tuple[Tensor, ...]:
    num_tokens = _clustered(inputs.sizes)
    counts = inputs.filled(num_tokens, dtype=LONG)
    return inputs.grouped_keys(num_tokens), counts, counts // UNIT_SIZE


def _cluster(keys: Tensor, counts: Tensor, num_clusters: Tensor, impl: str | None = None) -> Tensor:
    # As a prompt is clustered: how many clusters there are at the most is known without looking.
    most = keys.shape[1] // UNIT_SIZE
    return kmeans(keys, counts, num_clusters, iterations=ITERATIONS, max_clusters=most, impl=impl)


def _sketches(inputs: Inputs) -> tuple[Tensor, ...]:
    num_units, dim = inputs.sizes.num_units, inputs.sizes.shape.dim
    codes = (inputs.whole(-127, 128, num_units, dim, dtype=torch.int8) for _ in range(2))
    return inputs.query(), *codes, inputs.numbers(num_units, 3, dtype=torch.float16).abs()


def _sketches_moved(sizes: Sizes) -> tuple[int, int]:
    # The codes of the values are for the estimate alone; a step lies beside two others, in the same line of memory.
    read = sizes.num_rows * sizes.num_units * (sizes.shape.dim + 6)
    return _query_bytes(sizes) + read, _logit_bytes(sizes, sizes.num_units)


def _bits(inputs: Inputs) -> tuple[Tensor, ...]:
    num_tokens, dim = inputs.sizes.num_tokens, inputs.sizes.shape.dim
    bits = inputs.whole(0, 256, num_tokens, dim // 8, dtype=torch.uint8)
    return inputs.query(), bits, inputs.numbers(num_tokens // BIT_GROUP, 2 * dim)


def _logits(inputs: Inputs) -> Tensor:
    return inputs.numbers(inputs.sizes.shape.group_size, inputs.sizes.num_units, dtype=FLOAT)


def _tokens(inputs: Inputs) -> tuple[Tensor, ...]:
    sizes = inputs.sizes
    bits = inputs.whole(0, 256, sizes.num_tokens, sizes.shape.dim // 8, dtype=torch.uint8)
    place, unit = inputs.chosen(sizes.num_looked)
    steps = inputs.numbers(sizes.num_units, dtype=FLOAT).abs()
    return inputs.query(), _logits(inputs) - 10, bits, steps, unit, place


def _tokens_moved(sizes: Sizes) -> tuple[int, int]:
    num, rows = sizes.num_looked, sizes.num_rows
    of_units = _logit_bytes(sizes, num // UNIT_SIZE) + 4 * rows * (num // UNIT_SIZE)
    return _query_bytes(sizes) + of_units + rows * num * (sizes.shape.dim // 8 + 16), 4 * rows * num


def _listing(inputs: Inputs) -> tuple[Tensor | int, ...]:
    sizes, (slot_place, _) = inputs.sizes, inputs.selections()
    counts = inputs.filled(sizes.num_units, dtype=LONG)
    return slot_place, *inputs.taken(sizes.num_looked), counts, sizes.num_looked


def _counting(inputs: Inputs) -> tuple[Tensor | int, ...]:
    place, unit_sizes = inputs.chosen(inputs.sizes.num_retrieved)[0].to(INT), inputs.unit_sizes()
    begin = (unit_sizes.cumsum(1) - unit_sizes).to(INT)
    return place, unit_sizes, begin, inputs.filled(inputs.sizes.num_units, dtype=LONG)


def _listed(inputs: Inputs) -> tuple[Tensor | int, ...]:
    sizes = inputs.sizes
    place, _ = inputs.chosen(sizes.num_looked)
    scores = inputs.numbers(sizes.num_looked, dtype=FLOAT)
    room = inputs.filled(sizes.num_retrieved, dtype=LONG)
    return scores, place.to(INT), scores > 1, room, sizes.num_retrieved


def _turning(inputs: Inputs) -> tuple[Tensor, ...]:
    query, previous = (inputs.query().unflatten(0, (inputs.sizes.batch, -1)).flatten(1, 2) for _ in range(2))
    similarity, tau = (torch.full((len(query),), 0.9, dtype=FLOAT, device=inputs.device) for _ in range(2))
    return query, previous, similarity, tau


def _append(inputs: Inputs) -> tuple[Tensor, ...]:
    sizes = inputs.sizes
    keys, values = inputs.numbers(sizes.shape.dim), inputs.numbers(sizes.shape.dim)
    rows, bias = inputs.numbers(sizes.budget, 2 * sizes.shape.dim), inputs.filled(0, 1, sizes.budget)
    return rows, bias, inputs.filled(sizes.context, dtype=LONG), keys, values


def _append_moved(sizes: Sizes) -> tuple[int, int]:
    token = sizes.token_bytes(1) + 8 * sizes.num_rows
    return token, token + sizes.num_rows * sizes.shape.dtype.itemsize


def _store(inputs: Inputs) -> tuple[Tensor, ...]:
    lengths = inputs.whole(0, inputs.sizes.num_tokens - RUN)
    rows = inputs.numbers(RUN, 2 * inputs.sizes.shape.dim)
    return rows, inputs.pool("host"), lengths, inputs.filled(RUN, dtype=LONG)


def _fetch(inputs: Inputs) -> tuple[Tensor, ...]:
    sizes = inputs.sizes
    target = inputs.numbers(sizes.budget, 2 * sizes.shape.dim)[:, NUM_SINKS + WINDOW :]
    return target, inputs.pool("host"), inputs.chosen(sizes.num_retrieved)[0].to(INT), inputs.missing()


def _fetch_moved(sizes: Sizes) -> tuple[int, int]:
    tokens = sizes.token_bytes(sizes.num_missing)
    return tokens + 5 * sizes.num_rows * sizes.num_retrieved, tokens


def _resident(inputs: Inputs, num_slots: int) -> tuple[Tensor, ...]:
    return inputs.query(), *inputs.slots(num_slots), inputs.filled(0, 1, num_slots)


def _in_place(inputs: Inputs) -> tuple[Tensor, ...]:
    place = inputs.chosen(inputs.sizes.num_retrieved)[0].to(INT)
    return *_resident(inputs, NUM_SINKS + WINDOW), inputs.pool("device"), place


def _in_place_moved(sizes: Sizes) -> tuple[int, int]:
    slots = (
        sizes.num_rows * (NUM_SINKS + WINDOW) * sizes.shape.dtype.itemsize + 4 * sizes.num_rows * sizes.num_retrieved
    )
    return sizes.token_bytes(sizes.budget) + slots + _query_bytes(sizes), _query_bytes(sizes)


def _estimated(inputs: Inputs) -> tuple[Tensor, ...]:
    num_units, dim = inputs.sizes.num_units, inputs.sizes.shape.dim
    values = inputs.whole(-127, 128, num_units, dim, dtype=torch.int8)
    steps = inputs.numbers(num_units, dtype=torch.float16).abs()
    return *_resident(inputs, inputs.sizes.budget), _logits(inputs), inputs.unit_sizes(), values, steps


def _victims(inputs: Inputs) -> tuple[Tensor, ...]:
    num = inputs.sizes.budget + DROPPED
    positions = torch.arange(num, device=inputs.device).expand(inputs.sizes.num_rows, -1).contiguous()
    return inputs.numbers(num, dtype=FLOAT), positions, inputs.filled(DROPPED, dtype=LONG)


def _mergers(inputs: Inputs) -> tuple[Tensor, ...]:
    num = inputs.sizes.budget + DROPPED
    lost = inputs.numbers(num, dtype=FLOAT).argsort(dim=1) < DROPPED
    votes, log_scores = inputs.filled(0, num, dtype=FLOAT), inputs.numbers(num, dtype=FLOAT)
    return inputs.grouped_keys(num), inputs.numbers(num, inputs.sizes.shape.dim), votes, log_scores, lost


def _question(inputs: Inputs) -> tuple[Tensor, ...]:
    shape = inputs.sizes.shape
    return inputs.numbers(shape.group_size, QUESTION, shape.dim), *inputs.slots(_part(inputs.sizes))


_attend = partial(decode_attention, scaling=SCALING)

CASES = (
    Case(
        "kmeans",
        _kmeans,
        _cluster,
        flops=lambda s: 2 * s.num_rows * _clustered(s) * (_clustered(s) // UNIT_SIZE) * s.shape.dim * ITERATIONS,
    ),
    Case("query_cosines", lambda i: (i.query(), i.query()), query_cosines, flops=lambda s: 3 * _products(s, 1)),
    Case(
        "turned",
        _turning,
        lambda *given, impl: turned(*given[:3], tau=given[3], num_groups=1, by_group=False, impl=impl),
        moved=lambda s: (2 * _query_bytes(s) + 4 * s.batch, _query_bytes(s) + 5 * s.batch),
        flops=lambda s: 3 * _products(s, 1),
    ),
    Case("append_token", _append, partial(append_token, num_sinks=NUM_SINKS, window=WINDOW), moved=_append_moved),
    Case(
        "store_rows",
        _store,
        lambda rows, target, lengths, counts, *, impl: store_rows(target, lengths, rows, counts, impl=impl),
        moved=lambda s: (s.token_bytes(RUN) + 16 * s.num_rows, s.token_bytes(RUN)),
        bus="to_host",
    ),
    Case(
        "unit_logits",
        lambda i: (i.query(), i.numbers(i.sizes.num_units, i.sizes.shape.dim)),
        lambda query, *units, impl: unit_logits(query, units, kind="dot", scaling=SCALING, impl=impl),
        variant="dot",
        flops=lambda s: _products(s, s.num_units),
    ),
    Case(
        "unit_logits",
        _sketches,
        lambda query, *units, impl: unit_logits(query, units, kind="sketch", scaling=SCALING, impl=impl),
        variant="sketch",
        moved=_sketches_moved,
        flops=lambda s: _products(s, s.num_units),
    ),
    Case(
        "unit_logits",
        lambda i: (i.query(), i.numbers(i.sizes.num_units, 2 * i.sizes.shape.dim)),
        lambda query, *units, impl: unit_logits(query, units, kind="bound", scaling=SCALING, impl=impl),
        variant="bound",
        flops=lambda s: 2 * _products(s, s.num_units),
    ),
    Case(
        "unit_logits",
        _bits,
        lambda query, *units, impl: unit_logits(query, units, kind="one_bit", scaling=SCALING, impl=impl),
        variant="one_bit",
        flops=lambda s: _products(s, s.num_tokens),
    ),
    Case(
        "log_sums",
        lambda i: (i.query(), i.slots(NUM_SINKS + WINDOW)[0], i.filled(0, 1, NUM_SINKS + WINDOW)),
        partial(log_sums, scaling=SCALING),
        flops=lambda s: _products(s, NUM_SINKS + WINDOW),
    ),
    Case(
        "unit_shares",
        lambda i: (_logits(i), i.unit_sizes(), i.numbers(i.sizes.shape.group_size, dtype=FLOAT)),
        unit_shares,
        dtype=FLOAT,
    ),
    Case(
        "agree",
        lambda i: (_logits(i), i.unit_sizes()),
        partial(agree, reduce="softmax_mean"),
        variant="softmax",
        dtype=FLOAT,
    ),
    Case(
        "agree",
        lambda i: (_logits(i) - 10, i.unit_sizes()),
        partial(agree, reduce="share_mean"),
        variant="shares",
        dtype=FLOAT,
    ),
    Case(
        "score_tokens",
        _tokens,
        partial(score_tokens, scaling=SCALING),
        moved=_tokens_moved,
        flops=lambda s: _products(s, s.num_looked),
    ),
    Case(
        "raise_newest",
        lambda i: (i.numbers(i.sizes.num_units, dtype=FLOAT), i.filled(i.sizes.num_units, dtype=LONG)),
        partial(raise_newest, num=WINDOW // UNIT_SIZE),
        dtype=FLOAT,
    ),
    Case(
        "select_units",
        lambda i: (
            i.numbers(i.sizes.num_units, dtype=FLOAT),
            i.unit_sizes(),
            i.filled(i.sizes.num_retrieved, dtype=LONG),
        ),
        select_units,
        dtype=FLOAT,
    ),
    Case(
        "places_of",
        lambda i: (*i.taken(i.sizes.num_retrieved), i.sizes.num_retrieved),
        places_of,
        dtype=INT,
    ),
    Case(
        "list_candidates",
        _listing,
        lambda slot_place, take, begin, counts, width, *, impl: list_candidates(
            take, begin, slot_place, UnitTable(begin, counts), width, impl=impl
        ),
        dtype=INT,
    ),
    Case("best_tokens", _listed, partial(best_tokens, hold=1.0), dtype=FLOAT),
    Case("assign_slots", Inputs.selections, assign_slots, dtype=INT),
    Case(
        "fetch_rows",
        _fetch,
        lambda target, source, place, missing, *, impl: fetch_rows(source, place, missing, target, impl=impl),
        moved=_fetch_moved,
        bus="to_device",
    ),
    Case(
        "count_rest",
        _counting,
        lambda place, sizes, begin, counts, *, impl: count_rest(place, sizes, UnitTable(begin, counts), impl=impl),
        dtype=INT,
    ),
    Case(
        "decode_attention",
        lambda i: _resident(i, i.sizes.budget),
        _attend,
        variant="resident",
        flops=lambda s: 2 * _products(s, s.budget),
    ),
    Case(
        "decode_attention",
        _in_place,
        lambda query, keys, values, bias, *chosen, impl: _attend(
            query, keys, values, bias, chosen=Chosen(*chosen), impl=impl
        ),
        variant="in place",
        moved=_in_place_moved,
        flops=lambda s: 2 * _products(s, s.budget),
    ),
    Case(
        "decode_attention",
        _estimated,
        lambda query, keys, values, bias, *rest, impl: _attend(query, keys, values, bias, rest=Rest(*rest), impl=impl),
        variant="with rest",
        flops=lambda s: 2 * _products(s, s.budget) + _products(s, s.num_units),
    ),
    Case(
        "decode_attention",
        lambda i: (i.query(), *i.slots(i.sizes.num_tokens)),
        lambda query, keys, values, *, impl: _attend(query, keys, values, None, impl=impl),
        variant="full",
        flops=lambda s: 2 * _products(s, s.num_tokens),
    ),
    Case(
        "partial_attention",
        _question,
        lambda query, keys, values, *, impl: partial_attention(query, keys, values, None, scaling=SCALING, impl=impl),
        flops=lambda s: 2 * QUESTION * _products(s, _part(s)),
    ),
    Case(
        "partial_attention",
        lambda i: (i.numbers(i.sizes.shape.group_size, _part(i.sizes), i.sizes.shape.dim), *i.slots(_part(i.sizes))),
        lambda query, keys, values, *, impl: partial_attention(
            query, keys, values, None, scaling=SCALING, causal=True, impl=impl
        ),
        variant="causal",
        flops=lambda s: _part(s) * _products(s, _part(s)),
    ),
    Case(
        "attention_with_weights",
        lambda i: (i.query()[:, :, None], *i.slots(i.sizes.budget)),
        lambda query, keys, values, *, impl: attention_with_weights(
            query, keys, values, None, scaling=SCALING, impl=impl
        ),
        flops=lambda s: 2 * _products(s, s.budget),
    ),
    Case("choose_victims", _victims, choose_victims, dtype=FLOAT),
    Case(
        "merge_similar",
        _mergers,
        partial(merge_similar, threshold=ALIKE),
        flops=lambda s: 2 * s.num_rows * DROPPED * (s.budget + DROPPED) * s.shape.dim,
    ),
    *WINDOW_CASES,
)
