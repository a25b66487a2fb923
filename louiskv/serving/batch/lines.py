"""Lines of OpenAI's batch files: what is asked in one, and what is answered.

A request is `{"custom_id": ..., "method": "POST", "url": "/v1/chat/completions", "body": {...}}`. Its answer has the
same `custom_id`, and a `response` with status and body as the server gives them. A line that is no request has an
`error` that says why, its number, and a digest of what stands there.
"""

import codecs
import hashlib
import json
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from pydantic_core import from_json

from louiskv.serving.calls import Call

# What the names of all answers begin with.
NAME = "batch_req_"
URLS = ("/v1/chat/completions", "/v1/completions")
# By what a line is known: what its sender calls it; its number and its digest if it is no request.
Identity = str | tuple[int, str]


@dataclass(frozen=True)
class Line:
    """One line of the input.

    Attributes:
        number: From 1 on.
        custom_id: What its sender calls it, if it is a text.
        call: What it asks; None if it is no request.
        code: Of what is wrong with it, if anything is.
        reason: What is wrong with it.
        param: Where.
        digest: Of its bytes.
    """

    number: int
    custom_id: str | None
    call: Call | None = None
    code: str = ""
    reason: str = ""
    param: str | None = None
    digest: str = ""

    @property
    def identity(self) -> Identity:
        """By what its answer is known again."""
        return (self.number, self.digest) if self.call is None or self.custom_id is None else self.custom_id

    def answered(self, status: int, body: bytes) -> dict[str, Any]:
        """The line of the output."""
        response = {"status_code": status, "request_id": uuid.uuid4().hex, "body": json.loads(body)}
        return {"id": _name(), "custom_id": self.custom_id, "response": response, "error": None}

    @property
    def refused(self) -> dict[str, Any]:
        """The line of the output where there is no request."""
        where = {"param": self.param, "line": self.number, "digest": self.digest}
        error = {"code": self.code, "message": self.reason, **where}
        return {"id": _name(), "custom_id": self.custom_id, "response": None, "error": error}


def _name() -> str:
    return f"{NAME}{uuid.uuid4().hex}"


def read_lines(text: bytes) -> Iterator[Line]:
    """The lines of a file that are not empty; a name that was there before makes a line no request."""
    known: set[str] = set()
    # Editors of some systems begin a file of UTF-8 with a mark.
    for number, raw in enumerate(text.removeprefix(codecs.BOM_UTF8).split(b"\n"), 1):
        if not raw.strip():
            continue
        line = _line(number, raw)
        if line.call is not None and line.custom_id in known:
            line = _wrong(number, line.custom_id, "custom_id", "another line has it already", "duplicate_custom_id")
        elif line.call is not None and line.custom_id is not None:
            known.add(line.custom_id)
        yield replace(line, digest=hashlib.sha256(raw.strip()).hexdigest()[:16])


def _line(number: int, raw: bytes) -> Line:
    try:
        given = from_json(raw, allow_inf_nan=False)
    except ValueError as error:
        return Line(number, None, code="invalid_json_line", reason=f"This line is not valid JSON: {error}.")
    if not isinstance(given, dict):
        return Line(number, None, code="invalid_json_line", reason="This line must be a JSON object.")
    name, body = given.get("custom_id"), given.get("body")
    if not isinstance(name, str) or not name:
        return _wrong(number, None, "custom_id", "give a text by which the answer is known")
    if given.get("method") != "POST":
        return _wrong(number, name, "method", 'it must be "POST"')
    if given.get("url") not in URLS:
        return _wrong(number, name, "url", f"it must be {' or '.join(URLS)}")
    if not isinstance(body, dict):
        return _wrong(number, name, "body", "give the request as a JSON object")
    if body.get("stream"):
        return _wrong(number, name, "body.stream", "nobody listens to a stream here: leave it out")
    return Line(number, name, Call(given["url"], json.dumps(body).encode()))


def _wrong(number: int, name: str | None, param: str, reason: str, code: str = "invalid_value") -> Line:
    return Line(number, name, None, code, f"Invalid value for '{param}': {reason}.", param)
