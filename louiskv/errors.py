"""What louiskv raises when it cannot do what was asked."""


class LouisKVError(Exception):
    """Any error of louiskv."""


class SettingsError(LouisKVError, ValueError):
    """A setting is outside its range, or settings contradict each other."""


class NotCalibratedError(LouisKVError):
    """A method needs something that must be measured on the model once, and was not."""


class UnsupportedModelError(LouisKVError):
    """The model's attention or cache is of a kind that louiskv cannot manage."""


class HostMemoryError(LouisKVError, MemoryError):
    """The host has too little memory for the keys and values."""


class DeviceMemoryError(LouisKVError):
    """The device has too little memory for what was asked."""


class DeviceFailedError(LouisKVError):
    """The device has failed, and nothing can be computed on it any more in this process."""


class RequestError(LouisKVError, ValueError):
    """A request can never be answered as it was asked."""


class QueueFullError(LouisKVError):
    """So many requests wait already that no more are taken."""


class EngineStoppedError(LouisKVError):
    """The engine was stopped, or an error has ended it."""


class ImplementationError(LouisKVError):
    """No implementation of an operation can run, or the one asked for cannot."""


class ModelLoadError(LouisKVError):
    """A model, its configuration or its tokenizer cannot be read."""


class ResultsError(LouisKVError):
    """A file of results cannot be read, written, or gone on with."""


def check_count(name: str, value: int, low: int) -> None:
    """Raise `SettingsError` unless `value` is a whole number of at least `low`."""
    if type(value) is not int or value < low:
        raise SettingsError(f"{name}={value!r} is not allowed: give a whole number of at least {low}.")


def check_range(name: str, value: float, low: float, high: float) -> None:
    """Raise `SettingsError` unless `value` is a number from `low` to `high`."""
    if type(value) not in (int, float) or not low <= value <= high:
        raise SettingsError(f"{name}={value!r} is not allowed: give a number from {low} to {high}.")


def check_choice(name: str, value: object, choices: tuple[object, ...]) -> None:
    """Raise `SettingsError` unless `value` is one of the choices."""
    if not any(type(value) is type(each) and value == each for each in choices):
        raise SettingsError(f"{name}={value!r} is not allowed: give one of {', '.join(map(str, choices))}.")


def check_part(name: str, value: object, kind: type) -> None:
    """Raise `SettingsError` unless `value` is of the kind of part that `name` wants."""
    if not isinstance(value, kind):
        raise SettingsError(f"{name}={value!r} is not allowed: give an instance of {kind.__module__}.{kind.__name__}.")


def check_multiple(name: str, value: int, of: str, size: int) -> None:
    """Raise `SettingsError` unless `value` is a multiple of `size`, the setting named `of`."""
    check_count(name, value, 0)
    if value % size:
        below = value // size * size
        near = f"{below} or {below + size}" if below else f"{size}"
        raise SettingsError(f"{name}={value} is not a multiple of {of}={size}: give {near}.")
