"""How sure a mean is."""

from collections.abc import Sequence

import numpy as np

RESAMPLES = 2000
# What a table says of it.
TELLS = (
    "In brackets: the 95 % interval of the mean over samples, by a percentile bootstrap with 2,000 resamples within "
    "each task. It knows no more than the samples: where few of them all agree, it is too narrow."
)


def interval(tasks: Sequence[Sequence[float]]) -> tuple[float, float]:
    """The 95 % percentile bootstrap interval of the mean over tasks of the mean over samples.

    Args:
        tasks: Scores of the samples of each task; those of a task are drawn anew among themselves.
    """
    draws = np.random.default_rng(0)
    means = [draws.choice(np.asarray(scores, dtype=float), (RESAMPLES, len(scores))).mean(1) for scores in tasks]
    low, high = np.quantile(np.mean(means, axis=0), (0.025, 0.975))
    return float(low), float(high)
