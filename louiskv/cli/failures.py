"""What a command raises when it cannot go on, beside the errors of the library."""

from louiskv.errors import LouisKVError, SettingsError


class UsageError(LouisKVError):
    """What the user gave cannot be used, or something is missing."""


class ServerError(LouisKVError):
    """A server cannot begin."""


class AnswersDifferError(LouisKVError):
    """The method did not answer what full attention answers."""


def exit_code(error: LouisKVError) -> int:
    """2 if the command was used wrongly, 1 if it failed."""
    return 2 if isinstance(error, (UsageError, SettingsError)) else 1
