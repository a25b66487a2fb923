"""What louiskv raises when it cannot do what was asked."""


class LouisKVError(Exception):
    """Any error of louiskv."""


class SettingsError(LouisKVError, ValueError):
    """A setting is outside its range, or settings contradict each other."""


class UnsupportedModelError(LouisKVError):
    """The model's attention or cache is of a kind that louiskv cannot manage."""


class HostMemoryError(LouisKVError, MemoryError):
    """The host has too little memory for the keys and values."""


class ImplementationError(LouisKVError):
    """No implementation of an operation can run, or the one asked for cannot."""


class ModelLoadError(LouisKVError):
    """A model, its configuration or its tokenizer cannot be read."""
