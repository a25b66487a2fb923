"""Queries of known angles, and an index that says what it is told to."""

import torch
from torch import Tensor


class Told:
    """An estimate [B x Hkv] that was made beforehand, and how often it was asked for."""

    def __init__(self, covered: list[float], best: list[float] | None = None) -> None:
        self.covered, self.best = torch.tensor(covered), torch.tensor(best or covered)
        self.asked = self.asked_best = 0

    def coverage(self) -> Tensor:
        self.asked += 1
        return self.covered

    def best_coverage(self) -> Tensor:
        self.asked_best += 1
        return self.best


def at_angle(*degrees: float) -> Tensor:
    """Queries [1, heads, 2] of different lengths, one for each angle."""
    angle = torch.tensor(degrees).deg2rad()
    return (torch.arange(1, len(degrees) + 1)[:, None] * torch.stack([angle.cos(), angle.sin()], -1))[None]
