"""How it is computed: functions of tensors. The plain-torch reference of each operation is its specification."""

from louiskv.ops.attention import ATTENTION_WITH_WEIGHTS, DECODE_ATTENTION
from louiskv.ops.bisection import ALONG_WIDEST
from louiskv.ops.candidates import BEST_TOKENS, COUNT_REST, LIST_CANDIDATES
from louiskv.ops.dispatch import Implementation
from louiskv.ops.eviction import CHOOSE_VICTIMS, MERGE_SIMILAR
from louiskv.ops.grouping import GROUP_BY_LABEL
from louiskv.ops.kmeans import KMEANS
from louiskv.ops.log_sums import LOG_SUMS
from louiskv.ops.moving import APPEND_TOKEN, FETCH_ROWS, STORE_ROWS
from louiskv.ops.partial_attention import PARTIAL_ATTENTION
from louiskv.ops.recording import RECORD_STEP
from louiskv.ops.selection import (
    AGREE,
    ASSIGN_SLOTS,
    PLACES_OF,
    RAISE_NEWEST,
    SCORE_TOKENS,
    SELECT_UNITS,
    UNIT_LOGITS,
    UNIT_SHARES,
)
from louiskv.ops.sketches import BUNDLE_SKETCHES, SKETCH_UNITS
from louiskv.ops.turning import QUERY_COSINES, TURNED
from louiskv.ops.units import APPEND_UNITS, KEEP_RUNS, SUMMARISE_UNITS
from louiskv.ops.windows import CUT_RUNS, OLDEST_RUNS, RELEASE_RUNS, ROOM_BESIDE, TAKE_RUNS

OPS: dict[str, tuple[Implementation, ...]] = {
    "kmeans": KMEANS,
    "query_cosines": QUERY_COSINES,
    "append_token": APPEND_TOKEN,
    "turned": TURNED,
    "store_rows": STORE_ROWS,
    "log_sums": LOG_SUMS,
    "cut_runs": CUT_RUNS,
    "oldest_runs": OLDEST_RUNS,
    "room_beside": ROOM_BESIDE,
    "take_runs": TAKE_RUNS,
    "release_runs": RELEASE_RUNS,
    "group_by_label": GROUP_BY_LABEL,
    "summarise_units": SUMMARISE_UNITS,
    "sketch_units": SKETCH_UNITS,
    "bundle_sketches": BUNDLE_SKETCHES,
    "along_widest": ALONG_WIDEST,
    "append_units": APPEND_UNITS,
    "keep_runs": KEEP_RUNS,
    "unit_logits": UNIT_LOGITS,
    "unit_shares": UNIT_SHARES,
    "agree": AGREE,
    "raise_newest": RAISE_NEWEST,
    "select_units": SELECT_UNITS,
    "places_of": PLACES_OF,
    "list_candidates": LIST_CANDIDATES,
    "score_tokens": SCORE_TOKENS,
    "best_tokens": BEST_TOKENS,
    "assign_slots": ASSIGN_SLOTS,
    "fetch_rows": FETCH_ROWS,
    "count_rest": COUNT_REST,
    "decode_attention": DECODE_ATTENTION,
    "partial_attention": PARTIAL_ATTENTION,
    "attention_with_weights": ATTENTION_WITH_WEIGHTS,
    "record_step": RECORD_STEP,
    "choose_victims": CHOOSE_VICTIMS,
    "merge_similar": MERGE_SIMILAR,
}
