"""Which KV heads retrieve: scores measured once for a model, saved and found again."""

import hashlib
import json
import math
from contextlib import suppress
from dataclasses import asdict, dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch import nn

from louiskv.errors import SettingsError
from louiskv.folders import cache_folder

# Weights of each parameter that go into a model's sample.
SAMPLE = 4


@dataclass(frozen=True)
class ModelIdentity:
    """Tells whether two models are the same, in whatever dtype and wherever they lie.

    Attributes:
        name: What the model was loaded from; only people read it.
        shapes: Digest of the names and shapes of all parameters.
        sample: The first weights of each parameter.
    """

    name: str
    shapes: str
    sample: list[float]

    @classmethod
    def of(cls, model: nn.Module) -> "ModelIdentity":
        """Identify a model."""
        parameters = list(model.named_parameters())
        shapes = "\n".join(f"{name} {tuple(parameter.shape)}" for name, parameter in parameters)
        samples = [parameter.detach().flatten()[:SAMPLE].float().cpu() for _, parameter in parameters]
        return cls(
            name=str(getattr(getattr(model, "config", None), "_name_or_path", "")),
            shapes=hashlib.sha256(shapes.encode()).hexdigest(),
            sample=torch.cat(samples).tolist(),
        )

    def is_of(self, other: "ModelIdentity") -> bool:
        """Whether both are the same model; 16-bit weights are rounded, which is less than training changes."""
        if self.shapes != other.shapes or len(self.sample) != len(other.sample):
            return False
        return torch.allclose(torch.tensor(self.sample), torch.tensor(other.sample), rtol=1e-2, atol=1e-6)


@dataclass(frozen=True)
class HeadScores:
    """How much each KV head looks back to where a token stood before (RazorAttention, section 3.2 of arXiv 2407.15891).

    Attributes:
        model: The model they were measured on.
        echo: Attention to earlier occurrences of the same token, by layer and KV head; no heads where a layer is not
            managed.
        induction: Attention to the tokens behind those.
        settings: How they were measured.
    """

    model: ModelIdentity
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
        path.parent.mkdir(parents=True, exist_ok=True)
        work = path.with_suffix(".part")
        work.write_text(json.dumps(asdict(self), indent=1) + "\n")
        work.rename(path)
        return path

    @classmethod
    def load(cls, path: Path) -> "HeadScores":
        """Read them from a file.

        Raises:
            SettingsError: There is no such file, or it holds something else.
        """
        try:
            content = json.loads(path.read_text())
            scores = cls(**{**content, "model": ModelIdentity(**content["model"])})
            scores.check()
        except OSError as error:
            raise SettingsError(f"The head scores {path} cannot be read: {error.strerror}.") from error
        except (ValueError, TypeError, KeyError) as error:
            raise SettingsError(f"{path} holds no head scores: make them with louiskv.score_heads(model).") from error
        return scores

    @classmethod
    def find(cls, model: ModelIdentity) -> Path | None:
        """The file that was saved for a model, None if there is none; a damaged file is none."""
        for path in sorted(_folder().glob(f"{model.shapes[:16]}-*.json")):
            with suppress(SettingsError):
                if cls.load(path).model.is_of(model):
                    return path
        return None

    def check(self) -> None:
        """Raise ValueError or TypeError unless there are two numbers for each head, and a sample of numbers."""
        both = zip(self.echo, self.induction, strict=True)
        pairs = [pair for layer in both for pair in zip(*layer, strict=True)]
        if not all(isinstance(number, float | int) for number in [*self.model.sample, *chain(*pairs)]):
            raise TypeError("A score or a weight is no number.")


def _folder() -> Path:
    return cache_folder() / "heads"
