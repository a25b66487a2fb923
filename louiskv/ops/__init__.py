"""How it is computed: functions of tensors. The plain-torch reference of each operation is its specification."""

from louiskv.ops.attention import ATTENTION_WITH_WEIGHTS, DECODE_ATTENTION, PARTIAL_ATTENTION
from louiskv.ops.dispatch import Implementation
from louiskv.ops.eviction import CHOOSE_VICTIMS, MERGE_SIMILAR
from louiskv.ops.kmeans import KMEANS
from louiskv.ops.selection import AGREE, ASSIGN_SLOTS, SCORE_TOKENS, SELECT_UNITS, UNIT_LOGITS, UNIT_SHARES

OPS: dict[str, tuple[Implementation, ...]] = {
    "kmeans": KMEANS,
    "unit_logits": UNIT_LOGITS,
    "unit_shares": UNIT_SHARES,
    "agree": AGREE,
    "score_tokens": SCORE_TOKENS,
    "select_units": SELECT_UNITS,
    "assign_slots": ASSIGN_SLOTS,
    "decode_attention": DECODE_ATTENTION,
    "partial_attention": PARTIAL_ATTENTION,
    "attention_with_weights": ATTENTION_WITH_WEIGHTS,
    "choose_victims": CHOOSE_VICTIMS,
    "merge_similar": MERGE_SIMILAR,
}
