"""Where louiskv keeps what it makes once and uses again."""

import os
from pathlib import Path


def cache_folder() -> Path:
    """$LOUISKV_CACHE, otherwise ~/.cache/louiskv."""
    return Path(os.environ.get("LOUISKV_CACHE") or Path.home() / ".cache" / "louiskv")
