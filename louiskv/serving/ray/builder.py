"""The application made of plain arguments: `serve run louiskv.serving.ray:build key=value ...`, or a file of YAML."""

import os
from typing import Any, get_type_hints

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError
from ray.serve import Application

from louiskv.errors import SettingsError
from louiskv.methods import METHODS, Method
from louiskv.models import DEFAULT_MODEL, name_of
from louiskv.serving.desk import Limits
from louiskv.serving.errors import log
from louiskv.serving.guard import is_key
from louiskv.serving.ray.deployment import application
from louiskv.serving.ray.fleet import Fleet
from louiskv.serving.ray.replica import Blueprint
from louiskv.serving.sizes import bytes_of


class Arguments(BaseModel):
    """What `louiskv serve` has options for, by the same names; what is none of these is a setting of the method."""

    model_config = ConfigDict(extra="allow")
    model: str = DEFAULT_MODEL
    model_name: str | None = None
    method: str = "louiskv"
    dtype: str = "auto"
    device: str = "auto"
    impl: str | None = None
    rows: int = Field(8, ge=1)
    max_length: int | None = Field(None, ge=2)
    host_memory: str | None = None
    device_memory: str | None = None
    kept_memory: str | None = None
    prefill_chunk: int | None = Field(None, ge=3)
    queue: int = Field(64, ge=1)
    max_prompt: int | None = Field(None, ge=1)
    max_body: str = "16M"
    api_key: str | None = None
    cors: tuple[str, ...] = ()
    grace: float = Field(30.0, ge=0)
    replicas: int | None = None
    min_replicas: int | None = None
    max_replicas: int | None = None
    cpus_per_replica: float = 1
    gpus_per_replica: int = 0
    fronts: int | None = None
    upscale_delay: float = Field(30.0, ge=0)
    downscale_delay: float = Field(600.0, ge=0)
    drain: float = Field(600.0, ge=0)

    def fleet(self) -> Fleet:
        """How many replicas there are; raises `SettingsError`."""
        return Fleet(
            *replicas_between(self.replicas, self.min_replicas, self.max_replicas),
            cpus=self.cpus_per_replica,
            gpus=self.gpus_per_replica,
            fronts=self.fronts,
            upscale_delay=self.upscale_delay,
            downscale_delay=self.downscale_delay,
            grace=self.grace,
            drain=self.drain,
        )

    def blueprint(self) -> Blueprint:
        """What each replica is made of; raises `SettingsError`."""
        memory = {name: getattr(self, name) for name in ("host_memory", "device_memory", "kept_memory")}
        engine: dict[str, Any] = {name: None if text is None else bytes_of(name, text) for name, text in memory.items()}
        engine |= {name: getattr(self, name) for name in ("rows", "max_length", "prefill_chunk", "queue")}
        return Blueprint(
            model=self.model,
            name=self.model_name or name_of(self.model),
            method=_method(self.method, self.model_extra or {}),
            dtype=self.dtype,
            device=self.device,
            impl=self.impl,
            engine=tuple(engine.items()),
            limits=Limits(bytes_of("max_body", self.max_body), self.max_prompt),
        )


def build(arguments: Arguments) -> Application:
    """Put the application together for Ray Serve; the key may also be in LOUISKV_API_KEY, where this runs.

    Raises:
        SettingsError: An argument is wrong.
    """
    key = os.environ.get("LOUISKV_API_KEY") if arguments.api_key is None else arguments.api_key
    if key is None:
        log.warning("No api_key was given, nor LOUISKV_API_KEY where the application is built: anyone may ask.")
    elif not is_key(key.strip()):
        raise SettingsError("api_key is empty or has letters that a header cannot have: give plain letters and digits.")
    key = None if key is None else key.strip()
    return application(arguments.blueprint(), arguments.fleet(), api_key=key, origins=arguments.cors)


def replicas_between(replicas: int | None, least: int | None, most: int | None) -> tuple[int, int]:
    """The least and most replicas, of a number or of two.

    Raises:
        SettingsError: Both were given.
    """
    if replicas is not None and (least is not None or most is not None):
        raise SettingsError(f"replicas={replicas} is a fixed number: give it, or min_replicas and max_replicas.")
    if replicas is not None:
        return replicas, replicas
    return (1 if least is None else least), max(least or 1, 1) if most is None else most


def _method(name: str, given: dict[str, Any]) -> Method:
    """A method with settings that may be texts."""
    if name not in METHODS:
        raise SettingsError(f"There is no method {name!r}. The methods are: {', '.join(METHODS)}.")
    kind = METHODS[name]
    hints, known = get_type_hints(kind), [setting.name for setting in kind.settings()]
    if foreign := [each for each in given if each not in known]:
        raise SettingsError(
            f"There is no argument {', '.join(foreign)}; the settings of {name} are {', '.join(known)}."
        )
    try:
        return kind(**{each: TypeAdapter(hints[each]).validate_python(value) for each, value in given.items()})
    except ValidationError as error:
        raise SettingsError(f"A setting of {name} is of the wrong type: {error}") from error
