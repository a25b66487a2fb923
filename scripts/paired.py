"""Is one method better than others on the same questions? Paired differences of scores, with their 95 % intervals.

python scripts/paired.py results/smollm2/tasks.jsonl louiskv quest arkvale
"""

import sys
from collections import defaultdict
from pathlib import Path

import numpy as np

from louiskv.results import Results

RESAMPLES = 10_000

Question = tuple[str, int, int]


def scores(path: Path) -> dict[tuple[str, int], dict[Question, float]]:
    """Score of each question by method and budget."""
    found: dict[tuple[str, int], dict[Question, float]] = defaultdict(dict)
    for record in Results(path):
        if record["kind"] == "task" and record["group"] is None:
            asked = ((record["task"], record["context"], number) for number in record["samples"])
            found[record["method"], record["budget"]].update(zip(asked, record["scores"], strict=True))
    return found


def interval(differences: np.ndarray) -> tuple[float, float]:
    """Percentile bootstrap over the questions."""
    rng = np.random.default_rng(0)
    means = rng.choice(differences, (RESAMPLES, len(differences))).mean(1)
    low, high = np.quantile(means, (0.025, 0.975))
    return float(low), float(high)


def main() -> None:
    path, method, *others = sys.argv[1:]
    found = scores(Path(path))
    for budget in sorted({budget for name, budget in found if name == method}):
        own = found[method, budget]
        for other in others:
            both = sorted(own.keys() & found[other, budget].keys())
            if both:
                differences = np.array([own[each] - found[other, budget][each] for each in both])
                low, high = interval(differences)
                print(
                    f"budget {budget:5}  {method} less {other:16} {differences.mean():+.2f} [{low:+.2f}, {high:+.2f}]  "
                    f"{len(both)} questions"
                )


if __name__ == "__main__":
    main()
