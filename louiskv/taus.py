"""When each layer retrieves: the tau of every layer, measured for a model and saved as JSON."""

from dataclasses import dataclass
from typing import Any, ClassVar

from louiskv.errors import SettingsError
from louiskv.measured import Measured


@dataclass(frozen=True)
class LayerTaus(Measured):
    """The figure under which each layer retrieves, chosen for a retrieval rate or an error.

    Attributes:
        tau: Of each layer of the model; None where a layer is not managed or keeps everything on the device.
        global_tau: The one tau for all layers that reaches the target on their mean, as in the paper.
        target: What was aimed at: `{"rate": 0.25}` or `{"error": 0.1}`.
        achieved: What was reached on texts that were not used, by `tau` and by `global_tau`.
        curve: What fewer samples would have given.
        by_tau: Numbers `tau`, and for each managed layer that retrieves the `rates` and, if it was the target, the
            `errors` at each of them.
        settings: How they were measured.
        compared: What they are compared with.
    """

    what: ClassVar[str] = "calibrated taus"
    made_by: ClassVar[str] = "`louiskv calibrate`"

    tau: list[float | None]
    global_tau: float
    target: dict[str, float]
    achieved: dict[str, float]
    curve: list[dict[str, float]]
    by_tau: dict[str, list[Any]]
    settings: dict[str, Any]
    compared: str = "the cosine of neighbouring queries"

    def check(self) -> None:
        """Raise ValueError or TypeError unless every tau is a cosine or a share."""
        for each in (*self.tau, self.global_tau):
            if each is not None and not -1 <= each <= 1:
                raise ValueError(f"{each} is no cosine and no share.")

    def check_compared(self, compared: str, given: str) -> None:
        """Refuse taus for something else than what they are to be compared with.

        Raises:
            SettingsError: They are.
        """
        if compared != self.compared:
            raise SettingsError(
                f"{given} has taus for {self.compared}, and here they are compared with {compared or 'nothing'}: "
                "measure them with `louiskv calibrate` and the same settings."
            )

    def by_layer(self) -> tuple[float, ...]:
        """A tau for every layer of the model."""
        return tuple(self.global_tau if each is None else each for each in self.tau)
