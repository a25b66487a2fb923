"""All methods: one file each, by name."""

from louiskv.methods.base import Method
from louiskv.methods.full import Full
from louiskv.methods.full_offloaded import FullOffloaded
from louiskv.methods.louiskv import LouisKV

__all__ = ["METHODS", "Method"]

METHODS: dict[str, type[Method]] = {
    "full": Full,
    "full_offloaded": FullOffloaded,
    "louiskv": LouisKV,
}
