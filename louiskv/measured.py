"""What is measured on a model once and saved as JSON, and how a model is known again."""

import hashlib
import json
import os
from abc import ABC, abstractmethod
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import ClassVar, Self

import torch
from torch import nn

from louiskv.errors import SettingsError
from louiskv.shard import Shard, on_this_rank

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
        # However a parameter is split over ranks, its first weights are with the first.
        samples = [on_this_rank(parameter.detach()).flatten()[:SAMPLE].float().cpu() for _, parameter in parameters]
        return cls(
            name=str(getattr(getattr(model, "config", None), "_name_or_path", "")),
            shapes=hashlib.sha256(shapes.encode()).hexdigest(),
            sample=Shard.of(model).gather(torch.cat(samples).tolist())[0],
        )

    def is_of(self, other: "ModelIdentity") -> bool:
        """Whether both are the same model; 16-bit weights are rounded, which is less than training changes."""
        if self.shapes != other.shapes or len(self.sample) != len(other.sample):
            return False
        return torch.allclose(torch.tensor(self.sample), torch.tensor(other.sample), rtol=1e-2, atol=1e-6)


@dataclass(frozen=True)
class Measured(ABC):
    """Figures of one model, in a file.

    Attributes:
        what: Their name, for errors.
        made_by: What makes them, for errors.
        model: The model they were measured on.
    """

    what: ClassVar[str]
    made_by: ClassVar[str]

    model: ModelIdentity

    @abstractmethod
    def check(self) -> None:
        """Raise ValueError or TypeError unless the figures are of the kind they should be."""

    def write(self, path: Path) -> None:
        """Write them to a file, whole or not at all."""
        path.parent.mkdir(parents=True, exist_ok=True)
        # Other processes may be writing the same.
        work = path.with_suffix(f".{os.getpid()}.part")
        work.write_text(json.dumps(asdict(self), indent=1) + "\n")
        work.rename(path)

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read them from a file.

        Raises:
            SettingsError: There is no such file, or it holds something else.
        """
        try:
            content = json.loads(path.read_text())
            found = cls(**{**content, "model": ModelIdentity(**content["model"])})
            found.check()
        except OSError as error:
            raise SettingsError(f"The {cls.what} {path} cannot be read: {error.strerror}.") from error
        except (ValueError, TypeError, KeyError) as error:
            raise SettingsError(f"{path} holds no {cls.what}: make them with {cls.made_by}.") from error
        if not all(isinstance(number, float | int) for number in found.model.sample):
            raise SettingsError(f"{path} holds no {cls.what}: make them with {cls.made_by}.")
        return found

    def check_model(self, model: ModelIdentity, named: str) -> None:
        """Raise `SettingsError` unless they are of this model; `named` is the setting that named the file."""
        if not self.model.is_of(model):
            raise SettingsError(
                f"{named} was measured on another model ({self.model.name or 'without a name'}, not "
                f"{model.name or 'this one'}): make it for this one with {self.made_by}."
            )
