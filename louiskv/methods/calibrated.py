"""Methods that retrieve where a figure falls under tau, which may be measured for each layer of a model."""

from abc import abstractmethod
from dataclasses import replace
from pathlib import Path
from typing import ClassVar, Self

from torch import nn

from louiskv.errors import NotCalibratedError
from louiskv.measured import ModelIdentity
from louiskv.methods.base import Assembled, KVLayer
from louiskv.taus import LayerTaus


class Calibrated(Assembled):
    """A method with a tau for all layers, one for each, or a file that has one for each.

    Attributes:
        tau: Under which it retrieves.
        calibration: File of `louiskv calibrate`, which has a tau for each layer in the place of tau; empty for none.
        dense_layers: First layers that never retrieve.
        by_neighbours: Whether the cosines of neighbouring queries alone, mean over all heads, tell where it retrieves.
    """

    by_neighbours: ClassVar[bool] = False

    tau: float | tuple[float, ...]
    calibration: str
    dense_layers: int

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
        return self.with_tau(taus.by_layer())

    def with_tau(self, tau: float | tuple[float, ...]) -> Self:
        """With this tau, or these of each layer."""
        return replace(self, tau=tau, calibration="")  # type: ignore[call-arg]

    def for_sequence(self, tau: float) -> Self:
        """With this tau, if there is anything to be compared with it."""
        return self.with_tau(tau) if self.compared else super().for_sequence(tau)

    def layer(self, layer_index: int, impl: str | None = None) -> KVLayer:
        """The state of one layer, empty."""
        if self.calibration:
            name = type(self).__name__
            raise NotCalibratedError(f"{name} has not read its calibration yet: attach it to a model.")
        return super().layer(layer_index, impl)
