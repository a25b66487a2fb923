"""The output of a batch: a line for each answer, so that a run that was stopped goes on where it was."""

import json
from pathlib import Path
from typing import Any

from pydantic_core import from_json

from louiskv.errors import ResultsError
from louiskv.serving.batch.lines import NAME, Identity

# What every line begins with: by it a line that was cut off is told from a file of others.
HEAD = f'{{"id": "{NAME}'.encode()


class Answers:
    """Answers in a file.

    Attributes:
        path: The file.
        known: Lines of the input that have their answer there.
    """

    def __init__(self, path: Path) -> None:
        """Read what is there already; the file is left as it is.

        Raises:
            OSError: The file cannot be read.
            ResultsError: The file is something else.
        """
        self.path, self.known = path, set[Identity]()
        # Bytes of the whole lines, if the last line was cut off: the next answer takes its place.
        self._cut: int | None = None
        # What ends the last line, if it is whole but for that.
        self._missing = b""
        if path.exists():
            self._read(path.read_bytes())

    def add(self, told: dict[str, Any]) -> None:
        """Write a line; one that gets there in part gives its place to the next.

        Raises:
            OSError: The file cannot be written.
        """
        with self.path.open("ab") as lines:
            if self._cut is not None:
                lines.truncate(self._cut)
            self._cut = lines.seek(0, 2)
            lines.write(self._missing + json.dumps(told).encode() + b"\n")
        self._cut, self._missing = None, b""

    def _read(self, content: bytes) -> None:
        *whole, rest = content.split(b"\n")
        for number, raw in enumerate(whole, 1):
            self._know(raw, number)
        if rest and rest[: len(HEAD)] == HEAD[: len(rest)] and not _is_json(rest):
            self._cut = len(content) - len(rest)
        elif rest:
            self._know(rest, len(whole) + 1)
            self._missing = b"\n"

    def _know(self, raw: bytes, number: int) -> None:
        if not raw.strip():
            return
        try:
            identity = _answered(from_json(raw))
        except (ValueError, KeyError, TypeError) as error:
            raise ResultsError(
                f"{self.path} line {number} is no answer of a batch: give another --output, or remove the file."
            ) from error
        if identity is not None:
            self.known.add(identity)


def _answered(told: dict[str, Any]) -> Identity | None:
    """What a line of the output answers."""
    name, response, error = told["custom_id"], told["response"], told["error"]
    if error is not None:
        return int(error["line"]), str(error.get("digest", ""))
    if not isinstance(name, str):
        raise TypeError(name)
    # One whose answer was an error of the server is asked again.
    return None if int(response["status_code"]) >= 500 else name


def _is_json(raw: bytes) -> bool:
    try:
        from_json(raw)
    except ValueError:
        return False
    return True
