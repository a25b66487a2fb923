"""What clients have noted and the engine has counted, as figures of one record."""

import statistics
from collections import Counter
from collections.abc import Sequence
from itertools import pairwise

import torch

from louiskv.bench.clients import Told
from louiskv.bench.runner import Record
from louiskv.bench.served import Peaks
from louiskv.engine import Figures

# Status of a whole answer.
WHOLE = "200"
SHARES = (0.5, 0.9, 0.99)


def figures_of(told: Sequence[Told], peaks: Peaks, figures: Figures, processor_seconds: float) -> Record:
    """The figures of one run.

    Times are the clients', of whole answers alone; what was refused, timed out or cut off is counted by status. Bytes,
    retrievals and decoded tokens are the engine's, of all requests. Seconds of the processors are the server's, all
    its threads together: where there is no GPU they tell what was computed, however busy the machine was with other
    things.
    """
    whole = [each for each in told if each["status"] == WHOLE]
    seconds = max(each["end"] for each in told) - min(each["begin"] for each in told)
    prompt_tokens, output_tokens = (sum(each[name] for each in whole) for name in ("prompt_tokens", "output_tokens"))
    first = _first_tokens(whole)
    return {
        "answered": len(whole),
        "failed": dict(Counter(each["status"] for each in told if each["status"] != WHOLE)),
        "prompt_tokens": prompt_tokens,
        "output_tokens": output_tokens,
        "tokens_per_second": output_tokens / seconds,
        "all_tokens_per_second": (prompt_tokens + output_tokens) / seconds,
        "first_token_seconds": spread([each for own in first.values() for each in own]),
        "between_seconds": spread([later - earlier for each in whole for earlier, later in pairwise(each["times"])]),
        "answer_seconds": spread([each["end"] - each["begin"] for each in whole]),
        "first_token_by_prompt": {str(length): spread(own) for length, own in sorted(first.items())},
        "slowest_over_median": max((max(own) / statistics.median(own) for own in first.values()), default=None),
        "most_at_once": peaks.running,
        "peak_resident_bytes": peaks.resident_bytes,
        "peak_index_bytes": peaks.index_bytes,
        "peak_device_bytes": peaks.device_bytes,
        "peak_host_bytes": peaks.host_bytes,
        "fetched_bytes": figures.fetched_bytes,
        "decoded_tokens": figures.output_tokens,
        "retrieval_rate": figures.retrieval_rate,
        "processor_seconds": processor_seconds,
        "seconds": seconds,
    }


def spread(values: Sequence[float]) -> Record | None:
    """Median, p90, p99 and the greatest of some times; None for none."""
    if not values:
        return None
    known = torch.tensor(values, dtype=torch.float64)
    found = torch.quantile(known, torch.tensor(SHARES, dtype=torch.float64)).tolist()
    return {
        **{f"p{round(100 * share)}": value for share, value in zip(SHARES, found, strict=True)},
        "most": max(values),
    }


def _first_tokens(whole: Sequence[Told]) -> dict[int, list[float]]:
    """Times to the first token, by the length of the prompt."""
    found: dict[int, list[float]] = {}
    for each in whole:
        if each["times"]:
            found.setdefault(each["prompt_tokens"], []).append(each["times"][0] - each["begin"])
    return found
