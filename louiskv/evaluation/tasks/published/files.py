"""Files of published benchmarks: records, and where each stands, so that what is wrong can be found."""

import csv
import hashlib
import io
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from louiskv.errors import SettingsError


@dataclass(frozen=True)
class Entry:
    """A record of a file.

    Attributes:
        fields: Its fields by their names in small letters: publishers differ in how they write them.
        place: Where it stands.
        expected: What a record must have, for errors.
    """

    fields: Mapping[str, Any]
    place: str
    expected: str

    def text(self, name: str, *, empty: bool = False) -> str:
        """A field of text; `empty` allows that there is none in it.

        Raises:
            SettingsError: It is missing, no text, or empty.
        """
        value = self.fields.get(name.casefold())
        if not isinstance(value, str) or not (empty or value.strip()):
            raise self.refusal(name)
        return value

    def texts(self, name: str) -> tuple[str, ...]:
        """A field that lists texts, at least one.

        Raises:
            SettingsError: It is missing, no list, empty, or holds something else.
        """
        value = self.fields.get(name.casefold())
        if not isinstance(value, list) or not value or not all(isinstance(each, str) for each in value):
            raise self.refusal(name)
        return tuple(value)

    def refusal(self, name: str) -> SettingsError:
        """The error for a field that is not as it must be."""
        value = self.fields.get(name.casefold())
        what = f"has no {name!r}" if value in (None, "", []) else f"has {name}={value!r:.60}, which is not allowed"
        return SettingsError(f"{self.place} {what}. {self.expected}")


class DataFile:
    """A file of records.

    Attributes:
        path: The file.
        expected: What it must hold, for errors.
        digest: Of all that is in it.
    """

    def __init__(self, path: Path, expected: str) -> None:
        """Read it.

        Raises:
            SettingsError: There is no such file, or no text in it.
        """
        self.path, self.expected = path, expected
        try:
            # Spreadsheets begin their files with a byte order mark.
            self._text = path.read_text(encoding="utf-8-sig")
        except OSError as error:
            raise SettingsError(f"{path} cannot be read: {error.strerror}. {expected}") from error
        except UnicodeDecodeError as error:
            raise SettingsError(f"{path} is no UTF-8 text. {expected}") from error
        if not self._text.strip():
            raise SettingsError(f"{path} is empty. {expected}")
        self.digest = hashlib.sha256(self._text.encode()).hexdigest()[:16]

    def json(self) -> list[Entry]:
        """Records of JSON lines, or of one JSON list.

        Raises:
            SettingsError: Something is no JSON or no object, or there is nothing.
        """
        if self._text.lstrip().startswith("["):
            return self._entries("Record", enumerate(self._parsed(self._text, 0), 1))
        # A text may hold other ends of lines than the one that separates records.
        lines = [(number, line) for number, line in enumerate(self._text.split("\n"), 1) if line.strip()]
        return self._entries("Line", ((number, self._parsed(line, number - 1)) for number, line in lines))

    def table(self) -> list[Entry]:
        """Records of comma-separated values whose first line names the columns.

        Raises:
            SettingsError: It is no table, or has no rows but the first.
        """
        rows = csv.DictReader(io.StringIO(self._text, newline=""), restkey="", strict=True)
        try:
            return self._entries("Line", ((rows.line_num, row) for row in rows))
        except csv.Error as error:
            where = f"What follows line {rows.line_num} of {self.path}"
            raise SettingsError(f"{where} is no row of a table: {error}. {self.expected}") from error

    def _parsed(self, text: str, lines_before: int) -> Any:
        try:
            return json.loads(text)
        except json.JSONDecodeError as error:
            line = lines_before + error.lineno
            raise SettingsError(f"Line {line} of {self.path} is no JSON: {error.msg}. {self.expected}") from error

    def _entries(self, kind: str, numbered: Iterable[tuple[int, Any]]) -> list[Entry]:
        entries = []
        for number, record in numbered:
            place = f"{kind} {number} of {self.path}"
            if not isinstance(record, dict):
                raise SettingsError(f"{place} is no JSON object. {self.expected}")
            fields = {name.casefold(): value for name, value in record.items()}
            entries.append(Entry(fields, place, self.expected))
        if not entries:
            raise SettingsError(f"{self.path} has no records. {self.expected}")
        return entries
