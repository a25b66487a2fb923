"""All methods: one file each, by name."""

from louiskv.methods.arkvale import ArkVale
from louiskv.methods.base import Method
from louiskv.methods.clusterkv import ClusterKV
from louiskv.methods.fier import FIER
from louiskv.methods.freekv import FreeKV
from louiskv.methods.full import Full
from louiskv.methods.full_offloaded import FullOffloaded
from louiskv.methods.h2o import H2O
from louiskv.methods.keepkv import KeepKV
from louiskv.methods.louiskv import LouisKV
from louiskv.methods.louiskv_plus import LouisKVPlus
from louiskv.methods.lserve_reuse import LServeReuse
from louiskv.methods.oracle_top_k import OracleTopK
from louiskv.methods.quest import Quest
from louiskv.methods.raas import RaaS
from louiskv.methods.razor_attention import RazorAttention
from louiskv.methods.snapkv import SnapKV
from louiskv.methods.streaming_llm import StreamingLLM

__all__ = ["METHODS", "Method"]

METHODS: dict[str, type[Method]] = {
    "full": Full,
    "full_offloaded": FullOffloaded,
    "oracle_top_k": OracleTopK,
    "louiskv": LouisKV,
    "louiskv_plus": LouisKVPlus,
    "freekv": FreeKV,
    "quest": Quest,
    "lserve_reuse": LServeReuse,
    "arkvale": ArkVale,
    "clusterkv": ClusterKV,
    "fier": FIER,
    "streaming_llm": StreamingLLM,
    "h2o": H2O,
    "snapkv": SnapKV,
    "raas": RaaS,
    "keepkv": KeepKV,
    "razor_attention": RazorAttention,
}
