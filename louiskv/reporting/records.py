"""What lies in a folder of results, and what belongs together."""

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from louiskv.errors import ResultsError, SettingsError
from louiskv.provenance import digest
from louiskv.results import Results, key_of
from louiskv.taus import LayerTaus

Record = dict[str, Any]

# What tells runs of a method apart, by kind.
RUNS = {
    "task": ("text_hash", "task", "context", "seed", "samples"),
    "fidelity": ("text_hash", "prompt", "steps", "texts", "seed"),
}
# What every record tells of itself.
IDENTITY = ("kind", "model", "model_hash", "dtype", "method", "budget", "settings", "group", "family", "provenance")
# Most letters of a setting in the name of a method.
LONGEST = 40
WAY_OUT = "Mend the file, or take it out of the folder."


@dataclass(frozen=True)
class Found:
    """What lies in a folder.

    Attributes:
        files: Names of the files that were read.
        records: All records, each once.
        taus: Calibrations by the name of their file.
        left_out: Names of JSON files of other kinds.
    """

    files: list[str] = field(default_factory=list)
    records: list[Record] = field(default_factory=list)
    taus: dict[str, LayerTaus] = field(default_factory=dict)
    left_out: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Measured:
    """All that was measured on one model.

    Attributes:
        model: Its name.
        dtype: The type of its parameters; empty if only calibrations are known.
        model_hash: Digest of its parameters.
        records: Its records.
        taus: Its calibrations by the name of their file.
    """

    model: str
    dtype: str
    model_hash: str
    records: list[Record]
    taus: dict[str, LayerTaus]

    @property
    def title(self) -> str:
        """Name and type, as people read them."""
        return f"{self.model} in {self.dtype}" if self.dtype else self.model

    def of(self, *kinds: str, group: str | None = None) -> list[Record]:
        """Records of some kinds that belong to a comparison, or to none."""
        return [record for record in self.records if record["kind"] in kinds and record["group"] == group]


def find(folder: Path) -> Found:
    """Read every file of results and every calibration in a folder.

    Raises:
        SettingsError: The folder is not there, or holds nothing of ours.
        ResultsError: A file of results is of another format, or broken.
    """
    if not folder.is_dir():
        raise SettingsError(f"{folder} is {'no folder' if folder.exists() else 'not there'}: give a folder of results.")
    found, by_key = Found(), {}
    for path in sorted([*folder.glob("*.jsonl"), *folder.glob("*.json")]):
        if path.suffix == ".jsonl" and _holds_results(path):
            by_key.update(_read(path))
        elif path.suffix == ".json" and _holds_taus(path):
            found.taus[path.name] = LayerTaus.load(path)
        else:
            found.left_out.append(path.name)
            continue
        found.files.append(path.name)
    found.records.extend(map(_labelled, told_apart(by_key.values())))
    if not found.records and not found.taus:
        raise SettingsError(
            f"{folder} holds no results: make some with `louiskv eval --output {folder / 'eval.jsonl'}`, or give "
            "another folder."
        )
    return found


def _read(path: Path) -> dict[str, Record]:
    records = Results(path, WAY_OUT).records
    for record in records.values():
        absent = [name for name in IDENTITY if name not in record]
        if absent:
            raise ResultsError(f"A result in {path} has no {absent[0]}: it is none that can be drawn. {WAY_OUT}")
    return records


def by_model(found: Found) -> list[Measured]:
    """What was measured on each model, in the order of the records."""
    groups: dict[tuple[str, str, str], list[Record]] = {}
    for record in found.records:
        groups.setdefault((record["model"], record["dtype"], record["model_hash"]), []).append(record)
    named = [(short(name), dtype) for name, dtype, _ in groups]
    models = [
        # Two models of the same name are told apart by their parameters.
        Measured(own if named.count((own, dtype)) == 1 else f"{own} {known[:6]}", dtype, known, records, {})
        for (own, dtype), (*_, known), records in zip(named, groups, groups.values(), strict=True)
    ]
    for file, taus in found.taus.items():
        own = digest(taus.model)
        of_this = next((each for each in models if each.model_hash == own), None)
        if of_this is None:
            of_this = Measured(short(taus.model.name), "", own, [], {})
            models.append(of_this)
        of_this.taus[file] = taus
    return models


def short(model: str) -> str:
    """The name of a model; of one that was read from a folder, the last part of its path."""
    return Path(model).name if model.startswith("/") else model or "a model without a name"


def told_apart(records: Iterable[Record]) -> list[Record]:
    """Records whose method has a name of its own for each choice of settings, where a name has several."""
    known = list(records)
    choices: dict[tuple[Any, ...], list[Record]] = {}
    for record in known:
        chosen = choices.setdefault(_place(record), [])
        if _settings(record) not in chosen:
            chosen.append(_settings(record))
    return [_named_by_settings(record, choices[_place(record)]) for record in known]


def grouped(records: Iterable[Record], by: Callable[[Record], Any]) -> dict[Any, list[Record]]:
    """Records by something of theirs, in the order in which it comes."""
    groups: dict[Any, list[Record]] = {}
    for record in records:
        groups.setdefault(by(record), []).append(record)
    return groups


def by_budget(records: Iterable[Record]) -> list[tuple[str, list[Record]]]:
    """Records at each budget, those without one among each; told how a title ends."""
    known = list(records)
    budgets = sorted({record["budget"] for record in known if record["budget"] is not None})
    found = [(f", budget {each}", [record for record in known if record["budget"] in (None, each)]) for each in budgets]
    return found or [("", known)]


def comparable(records: Iterable[Record]) -> tuple[list[Record], list[str]]:
    """Records from which means can be compared: each method with a set of runs that all of them have.

    A stopped evaluation leaves methods with fewer runs than others. Chosen is the set that keeps the most records, and
    of two such the one of more methods.

    Returns:
        The records, and the names of the methods that lack one of these runs.
    """
    by_method = grouped(records, lambda record: (record["method"], record["budget"]))
    runs = {method: frozenset(map(_run, own)) for method, own in by_method.items()}
    candidates = [*runs.values(), frozenset.intersection(*runs.values())] if runs else [frozenset()]
    having = {each: sum(each <= own for own in runs.values()) for each in candidates}
    kept = max(candidates, key=lambda each: (len(each) * having[each], having[each]))
    compared = [method for method, own in runs.items() if kept <= own]
    left = dict.fromkeys(name for name, budget in runs if (name, budget) not in compared)
    return [record for method in compared for record in by_method[method] if _run(record) in kept], list(left)


def machine(record: Record) -> str:
    """Where a record was made."""
    made = record["provenance"]
    return f"{made['device']}; {made['processor']}; threads: {made['threads']}"


def _place(record: Record) -> tuple[Any, ...]:
    return tuple(record[name] for name in ("kind", "model_hash", "method", "budget", "group", "family"))


def _run(record: Record) -> str:
    return json.dumps([record[name] for name in RUNS[record["kind"]]])


def _settings(record: Record) -> Record:
    """All that can be chosen for a method; benchmarks tell the implementation as well."""
    return {**record["settings"], "impl": record.get("impl")}


def _named_by_settings(record: Record, choices: list[Record]) -> Record:
    own = _settings(record)
    differing = [name for name in own if any(other.get(name) != own[name] for other in choices)]
    told = ", ".join(f"{name}={_told(own[name])}" for name in differing)
    return {**record, "base": record["method"], "method": f"{record['method']} {told}".strip()}


def _told(value: Any) -> str:
    """A setting in a name; what was measured for each layer is told by a digest."""
    return str(value) if len(str(value)) <= LONGEST else f"#{key_of({'value': value})[:6]}"


def _labelled(record: Record) -> Record:
    """A record with the name that its line has in a figure: the method with its budget."""
    budget = "" if record["budget"] is None else f" {record['budget']}"
    return {**record, "label": f"{record['method']}{budget}"}


def _holds_results(path: Path) -> bool:
    """Whether the first line is a record; an empty file holds none."""
    try:
        with path.open(encoding="utf-8") as lines:
            first = json.loads(lines.readline() or "null")
    except OSError as error:
        raise ResultsError(f"{path} cannot be read: {error.strerror}. {WAY_OUT}") from error
    except ValueError:
        return False
    return isinstance(first, dict) and {"format", "key"} <= first.keys()


def _holds_taus(path: Path) -> bool:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ResultsError(f"{path} cannot be read: {error.strerror}. {WAY_OUT}") from error
    except ValueError:
        return False
    return isinstance(content, dict) and "global_tau" in content
