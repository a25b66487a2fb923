"""Methods that retrieve where a figure falls under tau, which may be measured for each layer of a model."""

from abc import abstractmethod
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar, Self

from torch import nn

from louiskv.errors import NotCalibratedError
from louiskv.measured import ModelIdentity
from louiskv.methods.base import Assembled, KVLayer, setting
from louiskv.taus import LayerTaus


@dataclass(frozen=True, kw_only=True)
class Calibrated(Assembled):
    """A method with a tau for all layers, one for each, or a file that has one for each.

    Attributes:
        dense_layers: First layers that never retrieve.
    """

    # Whether the cosines of neighbouring queries alone, mean over all heads, tell where it retrieves.
    by_neighbours: ClassVar[bool] = False

    tau: float | tuple[float, ...]
    calibration: str = setting("", "file of `louiskv calibrate`: a tau for each layer in the place of tau")
    dense_layers: int = setting(2, "first layers that keep everything on the device")

    @property
    @abstractmethod
    def compared(self) -> str:
        """What is compared with tau; empty for nothing."""

    @property
    def least_tau(self) -> float:
        """Under which nothing falls."""
        return -1.0

    def for_model(self, model: nn.Module) -> Self:
        """With the taus of the file, if one is named.

        Raises:
            SettingsError: There is no such file, or it is of another model, or for something else than what is
                compared here.
        """
        if not self.calibration:
            return self
        taus = LayerTaus.load(Path(self.calibration).expanduser())
        taus.check_model(ModelIdentity.of(model), f"calibration={self.calibration}")
        taus.check_compared(self.compared, f"calibration={self.calibration}")
        return replace(self, tau=taus.by_layer(), calibration="")

    def layer(self, layer_index: int, impl: str | None = None) -> KVLayer:
        """The state of one layer, empty."""
        if self.calibration:
            name = type(self).__name__
            raise NotCalibratedError(f"{name} has not read its calibration yet: attach it to a model.")
        return super().layer(layer_index, impl)
