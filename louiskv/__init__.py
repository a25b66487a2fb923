"""Decode over long prompts and outputs with a small, fixed part of the KV cache on the device.

with louiskv.attach(model, louiskv.LouisKV(budget=1024)) as cache:
    model.generate(**inputs)
print(cache.report())
"""

from importlib.metadata import version

from louiskv.attach import attach
from louiskv.cache import LouisKVCache
from louiskv.calibration import score_heads
from louiskv.errors import (
    HostMemoryError,
    ImplementationError,
    LouisKVError,
    ModelLoadError,
    NotCalibratedError,
    SettingsError,
    UnsupportedModelError,
)
from louiskv.generation import Generated, generate
from louiskv.methods import METHODS, Method
from louiskv.methods.arkvale import ArkVale
from louiskv.methods.clusterkv import ClusterKV
from louiskv.methods.eviction import Eviction
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
from louiskv.methods.retrieval import Retrieval
from louiskv.methods.snapkv import SnapKV
from louiskv.methods.streaming_llm import StreamingLLM

__version__ = version("louiskv")

__all__ = [
    "FIER",
    "H2O",
    "METHODS",
    "ArkVale",
    "ClusterKV",
    "Eviction",
    "FreeKV",
    "Full",
    "FullOffloaded",
    "Generated",
    "HostMemoryError",
    "ImplementationError",
    "KeepKV",
    "LServeReuse",
    "LouisKV",
    "LouisKVCache",
    "LouisKVError",
    "LouisKVPlus",
    "Method",
    "ModelLoadError",
    "NotCalibratedError",
    "OracleTopK",
    "Quest",
    "RaaS",
    "RazorAttention",
    "Retrieval",
    "SettingsError",
    "SnapKV",
    "StreamingLLM",
    "UnsupportedModelError",
    "__version__",
    "attach",
    "generate",
    "score_heads",
]
