"""Files of results: JSON lines, one for each finished run, so that a stopped evaluation goes on where it was."""

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from louiskv.errors import ResultsError

# Raised when what a line means changes.
FORMAT = 1
# What every line begins with: by it a line that was cut off is told from a file of others.
HEAD = f'{{"format": {FORMAT}, '
# What errors tell those who write a file to do.
WAY_OUT = "Give another --output, or mend the file."


def key_of(identity: dict[str, Any]) -> str:
    """A short name of all that decides over a result."""
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:16]


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Make the folder of a file that is written inside; what the system refuses is a `ResultsError`."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield
    except OSError as error:
        raise ResultsError(f"{path} cannot be written: {error.strerror}. Give another --output.") from error


def check_writable(path: Path) -> None:
    """Raise `ResultsError` if a file cannot be written; it is left as it is."""
    with writing(path):
        existed = path.exists()
        path.open("ab").close()
        if not existed:
            path.unlink()


class Results:
    """Records in a file, known by their keys.

    Attributes:
        path: The file.
        records: All records in it, by their keys.
    """

    def __init__(self, path: Path, way_out: str = WAY_OUT) -> None:
        """Read what is there already; the file is left as it is.

        Args:
            path: The file.
            way_out: What errors tell the user to do.

        Raises:
            ResultsError: The file is none of ours, of another format, or cannot be read.
        """
        self.path, self._way_out = path, way_out
        self.records: dict[str, dict[str, Any]] = {}
        # Bytes of the whole lines, if the last line was cut off: the next record takes its place.
        self._cut: int | None = None
        # What ends the last line, if it is whole but for that.
        self._missing = ""
        if path.exists():
            self._read()

    def __contains__(self, key: str) -> bool:
        return key in self.records

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return iter(self.records.values())

    def __getitem__(self, key: str) -> dict[str, Any]:
        return self.records[key]

    def add(self, record: dict[str, Any]) -> None:
        """Write a record, at once and to the disk.

        Raises:
            ResultsError: The file cannot be written, or a figure is no finite number.
        """
        try:
            line = json.dumps({"format": FORMAT, **record}, allow_nan=False) + "\n"
        except ValueError as error:
            raise ResultsError(
                f"A figure of {record.get('method', 'a result')} is no finite number, and is not written: the model's "
                "logits overflow. Give another --dtype."
            ) from error
        with writing(self.path), self.path.open("ab") as lines:
            if self._cut is not None:
                lines.truncate(self._cut)
            lines.write((self._missing + line).encode())
        self._cut, self._missing = None, ""
        self.records[record["key"]] = {"format": FORMAT, **record}

    def check_writable(self) -> None:
        """Raise `ResultsError` now and not when the first run is done, if nothing can be written there."""
        check_writable(self.path)

    def _read(self) -> None:
        try:
            content = self.path.read_bytes()
            *whole, rest = content.decode().split("\n")
        except OSError as error:
            raise ResultsError(f"{self.path} cannot be read: {error.strerror}. {self._way_out}") from error
        except UnicodeDecodeError as error:
            raise ResultsError(f"{self.path} is no file of results: it is no text. {self._way_out}") from error
        for number, line in enumerate(whole, 1):
            record = self._record(line, number)
            self.records[record["key"]] = record
        if rest and rest[: len(HEAD)] == HEAD[: len(rest)] and not _is_json(rest):
            self._cut = len(content) - len(rest.encode())
        elif rest:
            record = self._record(rest, len(whole) + 1)
            self.records[record["key"]] = record
            self._missing = "\n"

    def _record(self, line: str, number: int) -> dict[str, Any]:
        try:
            record: dict[str, Any] = json.loads(line)
            version, _ = record["format"], record["key"]
        except (ValueError, KeyError, TypeError) as error:
            raise ResultsError(f"Line {number} of {self.path} is no result of louiskv. {self._way_out}") from error
        if version != FORMAT:
            raise ResultsError(
                f"Line {number} of {self.path} has format {version}, this version of louiskv writes {FORMAT}. What is "
                f"there is kept. {self._way_out}"
            )
        return record


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except ValueError:
        return False
    return True
