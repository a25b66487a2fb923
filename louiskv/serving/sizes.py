"""Sizes as people write them."""

import re

from louiskv.errors import SettingsError

UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


def bytes_of(name: str, text: str) -> int:
    """Bytes of a size such as 512M or 8G.

    Raises:
        SettingsError: It is none.
    """
    read = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT]?)(?:i?B)?", text.strip(), re.IGNORECASE)
    if read is None:
        raise SettingsError(f"{name} {text} is no size: give bytes, or a number with K, M, G or T such as 8G.")
    return int(float(read[1]) * UNITS[read[2].upper()])
