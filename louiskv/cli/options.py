"""Options that several commands share: the method and its settings, the model and where it runs, how to generate."""

from collections.abc import Callable, Iterable
from dataclasses import Field, dataclass, replace
from functools import wraps
from inspect import Parameter, signature
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

import typer

from louiskv import models
from louiskv.errors import SettingsError, check_count, check_range
from louiskv.methods import METHODS, Method
from louiskv.methods.freekv import FreeKV
from louiskv.methods.louiskv import LouisKV

# The settings that a paper gives for a kind of work, by method.
PRESETS: dict[str, dict[str, Callable[[], Method]]] = {
    "louiskv": {
        "long_input": LouisKV.long_input,
        "long_output": LouisKV.long_output,
        "long_both": LouisKV.long_both,
    },
    "freekv": {"long_output": FreeKV.long_output},
}

Dtype = Literal["auto", "float32", "bfloat16", "float16"]
DEVICES = "cpu, cuda or cuda:1; auto takes a GPU if there is one."
Command = Callable[..., None]


@dataclass(frozen=True)
class MethodChoice:
    """The method that the user asked for.

    Attributes:
        name: Key of METHODS.
        preset: One of the method's PRESETS, or None.
        given: Settings given on the command line.
    """

    name: str
    preset: str | None
    given: dict[str, Any]

    def kind(self) -> type[Method]:
        """The class of the method.

        Raises:
            SettingsError: There is no such method.
        """
        if self.name not in METHODS:
            raise SettingsError(f"There is no method {self.name!r}. The methods are: {', '.join(METHODS)}.")
        return METHODS[self.name]

    def build(self, **defaults: Any) -> Method:
        """The method, with these defaults in place of its own.

        Raises:
            SettingsError: There is no such method, it has no such setting or preset, or a value is not allowed.
        """
        method = self.kind()
        known = [setting.name for setting in method.settings()]
        foreign = [flag(name) for name in self.given if name not in known]
        if foreign:
            own = f"its settings are {', '.join(map(flag, known))}" if known else "it has none"
            raise SettingsError(f"The method {self.name} has no setting {', '.join(foreign)}: {own}.")
        if self.preset is None:
            return method(**{**{name: value for name, value in defaults.items() if name in known}, **self.given})
        presets = PRESETS.get(self.name, {})
        if self.preset not in presets:
            have = f"its presets are: {', '.join(presets)}" if presets else "it has none"
            raise SettingsError(f"The method {self.name} has no preset {self.preset!r}: {have}.")
        return replace(presets[self.preset](), **self.given)


@dataclass(frozen=True)
class ModelChoice:
    """The model that the user asked for, and where and how it runs."""

    name: str
    dtype: str
    device: str
    impl: str | None


@dataclass(frozen=True)
class Sampling:
    """How to generate: greedily at temperature 0."""

    max_new_tokens: int
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0
    prefill_chunk: int | None = None

    def __post_init__(self) -> None:
        """Check the numbers."""
        check_count("max_new_tokens", self.max_new_tokens, 1)
        check_range("temperature", self.temperature, 0, 100)
        check_range("top_p", self.top_p, 0.001, 1)
        if self.prefill_chunk is not None:
            check_count("prefill_chunk", self.prefill_chunk, 1)


def takes_method(command: Command) -> Command:
    """Give a command --method, --preset and an option for each setting of any method, as its argument `method`."""

    def collect(given: dict[str, Any]) -> MethodChoice:
        name, preset = given.pop("method"), given.pop("preset")
        return MethodChoice(name, preset, {key: value for key, value in given.items() if value is not None})

    kinds = f"How keys and values are managed: {', '.join(METHODS)}."
    known = "; ".join(f"{name}: {', '.join(presets)}" for name, presets in PRESETS.items())
    presets = f"The paper's settings for a kind of work ({known}). Settings given as well go before them."
    chosen = [
        _option("method", str, "louiskv", kinds, "Method", metavar="NAME"),
        _option("preset", str | None, None, presets, "Method", metavar="NAME"),
    ]
    return _bundled(command, "method", [*chosen, *_options_of_settings()], collect)


def takes_settings(command: Command) -> Command:
    """Give a command an option for each setting of any method, as its argument `settings`: those given, by name.

    Options of the same name that the command has itself stay as they are.
    """
    taken = signature(command).parameters

    def collect(given: dict[str, Any]) -> dict[str, Any]:
        return {key: value for key, value in given.items() if value is not None}

    free = (option for option in _options_of_settings() if option.name not in taken)
    return _bundled(command, "settings", free, collect)


def takes_model(command: Command) -> Command:
    """Give a command --model, --dtype, --device and --impl, as its argument `model`."""
    dtypes = f"Type of weights, keys and values: {', '.join(get_args(Dtype))}"
    options = [
        _option("model", str, models.DEFAULT_MODEL, "Name, folder or gguf file of the model.", "Model", metavar="NAME"),
        _option("dtype", Dtype, "auto", f"{dtypes}; auto takes the model's own.", "Model", metavar="TYPE"),
        _option("device", str, "auto", DEVICES, "Model"),
        _option(
            "impl", str | None, None, "Implementation of the operations, such as torch; none takes the best.", "Model"
        ),
    ]
    return _bundled(command, "model", options, lambda given: ModelChoice(given.pop("model"), **given))


@dataclass(frozen=True)
class FleetChoice:
    """Whether and how the server runs on many machines."""

    ray: bool
    ray_address: str | None
    replicas: int | None
    min_replicas: int | None
    max_replicas: int | None
    cpus_per_replica: float | None
    gpus_per_replica: int | None

    def check(self) -> None:
        """Raise `SettingsError` if there are options of it without --ray."""
        # The address may stand in the environment for other programs.
        names = ("replicas", "min_replicas", "max_replicas", "cpus_per_replica", "gpus_per_replica")
        given = [flag(name) for name in names if getattr(self, name) is not None]
        if given and not self.ray:
            raise SettingsError(f"{', '.join(given)} are for replicas on a cluster: give --ray as well.")


def takes_fleet(command: Command) -> Command:
    """Give a command --ray and how many replicas there are, as its argument `fleet`."""
    panel, many = "Many machines", {"min": 1, "metavar": "N"}
    address = "Cluster to run on, auto for the one of this machine; one is started here unless given."
    options = [
        _option("ray", bool, False, "Serve replicas with Ray Serve, on this machine or a cluster.", panel),
        _option("ray_address", str | None, None, address, panel, envvar="RAY_ADDRESS", metavar="ADDRESS"),
        _option("replicas", int | None, None, "Replicas: each has the model and answers alone.", panel, **many),
        _option("min_replicas", int | None, None, "Least replicas, where they come and go.", panel, **many),
        _option("max_replicas", int | None, None, "Most replicas, where they come and go.", panel, **many),
        _option("cpus_per_replica", float | None, None, "CPU cores of each one (1).", panel, min=0.1, metavar="N"),
        _option(
            "gpus_per_replica", int | None, None, "GPUs of each one: 1 where there are any, or 0.", panel, min=0, max=1
        ),
    ]
    return _bundled(command, "fleet", options, lambda given: FleetChoice(**given))


def takes_sampling(command: Command) -> Command:
    """Give a command the options of generation, as its argument `sampling`."""
    panel = "Generation"
    chunk = "Take a prompt in by chunks of this many tokens, for less memory at its peak."
    options = [
        _option("max_new_tokens", int, 256, "Most tokens to generate.", panel, metavar="N"),
        _option("temperature", float, 0.0, "0 takes the likeliest token; more is more varied.", panel),
        _option("top_p", float, 1.0, "Sample among the likeliest tokens of this total probability.", panel),
        _option("seed", int, 0, "Seed of the sampling.", panel, metavar="N"),
        _option("prefill_chunk", int | None, None, chunk, panel, metavar="N"),
    ]
    return _bundled(command, "sampling", options, lambda given: Sampling(**given))


def _options_of_settings() -> Iterable[Parameter]:
    """An option for each name of a setting; its help says which methods have it, what it means there, its default."""
    owners: dict[str, list[tuple[str, Field[Any], Any]]] = {}
    for method, kind in METHODS.items():
        hints = get_type_hints(kind)
        for setting in kind.settings():
            owners.setdefault(setting.name, []).append((method, setting, _plain(hints[setting.name])))
    for name, entries in owners.items():
        types = {entry[2] for entry in entries}
        one: Any = types.pop() if len(types) == 1 else float if types == {int, float} else str
        meanings: dict[str, list[str]] = {}
        for method, setting, _ in entries:
            default = "none" if setting.default == "" else setting.default
            meanings.setdefault(setting.metadata["help"], []).append(f"{method} {default}")
        line = "; ".join(f"{text} ({', '.join(defaults)})" for text, defaults in meanings.items())
        yield _option(name, one | None, None, line, "Settings of the methods (and their defaults)")


def _plain(hint: Any) -> Any:
    """The type of a setting without None."""
    if get_origin(hint) not in (Union, UnionType):
        return hint
    return next(kind for kind in get_args(hint) if kind is not type(None))


def _option(name: str, kind: Any, default: Any, help: str, panel: str, **more: Any) -> Parameter:
    option = typer.Option(help=help, rich_help_panel=panel, **more)
    return Parameter(name, Parameter.KEYWORD_ONLY, default=default, annotation=Annotated[kind, option])


def _bundled(
    command: Command, argument: str, options: Iterable[Parameter], collect: Callable[[dict[str, Any]], Any]
) -> Command:
    """Give a command options that reach it as one argument."""
    added = {option.name: option for option in options}
    own = signature(command)

    @wraps(command)
    def wrapper(**given: Any) -> None:
        bundle = {name: given.pop(name) for name in added}
        command(**given, **{argument: collect(bundle)})

    kept = [parameter for parameter in own.parameters.values() if parameter.name != argument]
    vars(wrapper)["__signature__"] = own.replace(parameters=[*kept, *added.values()])
    return wrapper


def flag(name: str) -> str:
    """The option of a setting: unit_size -> --unit-size."""
    return f"--{name.replace('_', '-')}"
