"""Which KV heads retrieve: scores measured once for a model, saved and found again."""

import hashlib
import json
import math
from contextlib import suppress
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, ClassVar

from louiskv.errors import SettingsError
from louiskv.folders import cache_folder
from louiskv.measured import Measured, ModelIdentity


@dataclass(frozen=True)
class HeadScores(Measured):
    """How much each KV head looks back to where a token stood before (RazorAttention, section 3.2 of arXiv 2407.15891).

    Attributes:
        echo: Attention to earlier occurrences of the same token, by layer and KV head; no heads where a layer is not
            managed.
        induction: Attention to the tokens behind those.
        settings: How they were measured.
    """

    what: ClassVar[str] = "head scores"
    made_by: ClassVar[str] = "louiskv.score_heads(model)"

    echo: list[list[float]]
    induction: list[list[float]]
    settings: dict[str, Any]

    def best(self, echo: float, induction: float) -> tuple[tuple[int, ...], ...]:
        """KV heads of each layer that are among this share of all heads by echo, or that share by induction."""
        chosen: set[tuple[int, int]] = set()
        for scores, share in ((self.echo, echo), (self.induction, induction)):
            ranked = sorted(
                ((score, layer, head) for layer, heads in enumerate(scores) for head, score in enumerate(heads)),
                key=lambda entry: (-entry[0], entry[1:]),
            )
            chosen |= {(layer, head) for _, layer, head in ranked[: math.ceil(share * len(ranked))]}
        return tuple(
            tuple(head for head in range(len(heads)) if (layer, head) in chosen)
            for layer, heads in enumerate(self.echo)
        )

    def save(self, path: Path | None = None) -> Path:
        """Write them to a file, or where they will be found for this model; returns where."""
        if path is None:
            digest = hashlib.sha256(json.dumps(self.model.sample).encode()).hexdigest()
            path = _folder() / f"{self.model.shapes[:16]}-{digest[:8]}.json"
        self.write(path)
        return path

    @classmethod
    def find(cls, model: ModelIdentity) -> Path | None:
        """The file that was saved for a model, None if there is none; a damaged file is none."""
        for path in sorted(_folder().glob(f"{model.shapes[:16]}-*.json")):
            with suppress(SettingsError):
                if cls.load(path).model.is_of(model):
                    return path
        return None

    def check(self) -> None:
        """Raise ValueError or TypeError unless there are two numbers for each head."""
        pairs = [pair for layer in zip(self.echo, self.induction, strict=True) for pair in zip(*layer, strict=True)]
        if not all(isinstance(number, float | int) for number in chain(*pairs)):
            raise TypeError("A score is no number.")


def _folder() -> Path:
    return cache_folder() / "heads"
