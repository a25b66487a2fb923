"""Files of results: JSON lines, one for each finished run, so that a stopped evaluation goes on where it was."""

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from louiskv.errors import ResultsError

# Raised when what a line means changes.
FORMAT = 1
# What errors tell those who write a file to do.
WAY_OUT = "Give another --output, or mend the file."


def key_of(identity: dict[str, Any]) -> str:
    """A short name of all that decides over a result."""
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:16]


class Results:
    """Records in a file, known by their keys.

    Attributes:
        path: The file.
        records: All records in it, by their keys.
    """

    def __init__(self, path: Path) -> None:
        """Read what is there already; a line that was cut off in the middle is taken away.

        Raises:
            ResultsError: The file is none of ours, or of another format.
        """
        self.path = path
        self.records: dict[str, dict[str, Any]] = {}
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
            ResultsError: The file cannot be written.
        """
        full = {"format": FORMAT, **record}
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("a", encoding="utf-8") as lines:
                lines.write(json.dumps(full) + "\n")
        except OSError as error:
            raise ResultsError(f"{self.path} cannot be written: {error.strerror}. Give another --output.") from error
        self.records[full["key"]] = full

    def _read(self) -> None:
        text = _text(self.path, WAY_OUT)
        self.records = _records(text, self.path, WAY_OUT)
        whole, newline, rest = text.rpartition("\n")
        if rest:
            self.path.write_text(whole + newline, encoding="utf-8")


def read(path: Path, way_out: str) -> dict[str, dict[str, Any]]:
    """All records of a file by their keys; the file stays as it is, so that another may be writing it.

    Args:
        path: The file.
        way_out: What errors tell the user to do.

    Raises:
        ResultsError: The file is none of ours, or of another format.
    """
    return _records(_text(path, way_out), path, way_out)


def _text(path: Path, way_out: str) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ResultsError(f"{path} cannot be read: {error}. {way_out}") from error


def _records(text: str, path: Path, way_out: str) -> dict[str, dict[str, Any]]:
    """Records of all whole lines."""
    whole, _, _ = text.rpartition("\n")
    records = [_record(line, number, path, way_out) for number, line in enumerate(whole.splitlines(), 1)]
    return {record["key"]: record for record in records}


def _record(line: str, number: int, path: Path, way_out: str) -> dict[str, Any]:
    try:
        record: dict[str, Any] = json.loads(line)
        version, _ = record["format"], record["key"]
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise ResultsError(f"Line {number} of {path} is no result of louiskv. {way_out}") from error
    if version != FORMAT:
        raise ResultsError(
            f"Line {number} of {path} has format {version}, this version of louiskv writes {FORMAT}. What is "
            f"there is kept. {way_out}"
        )
    return record
