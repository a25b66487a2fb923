"""Files of results: JSON lines, one for each finished run, so that a stopped evaluation goes on where it was."""

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from louiskv.errors import ResultsError

# Raised when what a line means changes.
FORMAT = 1


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
        try:
            text = self.path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ResultsError(f"{self.path} cannot be read: {error}. Give another --output.") from error
        whole, _, rest = text.rpartition("\n")
        for number, line in enumerate(whole.splitlines(), 1):
            record = self._record(line, number)
            self.records[record["key"]] = record
        if rest:
            self.path.write_text(f"{whole}\n" if whole else "", encoding="utf-8")

    def _record(self, line: str, number: int) -> dict[str, Any]:
        try:
            record: dict[str, Any] = json.loads(line)
            version, _ = record["format"], record["key"]
        except (json.JSONDecodeError, KeyError, TypeError) as error:
            raise ResultsError(
                f"Line {number} of {self.path} is no result of louiskv. Give another --output, or mend the file."
            ) from error
        if version != FORMAT:
            raise ResultsError(
                f"Line {number} of {self.path} has format {version}, this version of louiskv writes {FORMAT}. What is "
                "there is kept: give another --output."
            )
        return record
