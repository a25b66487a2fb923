"""Decode over long prompts and outputs with a small, fixed part of the KV cache on the device.

with louiskv.attach(model, louiskv.LouisKV(budget=1024)) as cache:
    model.generate(**inputs, past_key_values=cache)
print(cache.report())
"""

from importlib.metadata import version

from louiskv.attach import attach
from louiskv.cache import LouisKVCache
from louiskv.errors import (
    HostMemoryError,
    ImplementationError,
    LouisKVError,
    ModelLoadError,
    SettingsError,
    UnsupportedModelError,
)
from louiskv.methods import METHODS, Method
from louiskv.methods.full import Full
from louiskv.methods.full_offloaded import FullOffloaded
from louiskv.methods.louiskv import LouisKV

__version__ = version("louiskv")

__all__ = [
    "METHODS",
    "Full",
    "FullOffloaded",
    "HostMemoryError",
    "ImplementationError",
    "LouisKV",
    "LouisKVCache",
    "LouisKVError",
    "Method",
    "ModelLoadError",
    "SettingsError",
    "UnsupportedModelError",
    "__version__",
    "attach",
]
