"""`louiskv calibrate`, with the real default model on the smallest of everything."""

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import Result

import louiskv.evaluation.calibrate as measuring
from louiskv.evaluation.texts import Haystack
from louiskv.measured import ModelIdentity
from louiskv.taus import LayerTaus
from tests.cli.conftest import Loaded, Run, refused
from tests.families import tiny

LITTLE = "--samples", "4", "--context", "32", "--steps", "3", "--budget", "24", "--sink", "2", "--window", "8"
RATE = "--rate", "0.5"
Calibrate = Callable[..., Result]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "deep" / "tau.json"


@pytest.fixture
def calibrate(run: Run, file: Path) -> Calibrate:
    """Runs `louiskv calibrate` into the file."""
    return lambda *flags: run("calibrate", *LITTLE, *flags, "--output", str(file))


def test_a_rate_is_told_in_tables_and_the_file_is_used_by_generate(
    calibrate: Calibrate, run: Run, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = calibrate(*RATE)
    assert told.exit_code == 0 and not told.stderr
    for words in ("layer", "taus differ by", "on held-out texts", "a tau for each layer", f"--calibration {file}"):
        assert words.replace(" ", "") in "".join(told.stdout.split())
    taus = LayerTaus.load(file)
    assert taus.tau[:2] == [None, None] and len(taus.tau) == 30 and taus.target == {"rate": 0.5}
    assert (taus.settings["samples"], taus.settings["held_out"], taus.settings["seed"]) == (3, 1, 0)
    used = run("generate", "Hello", "--max-new-tokens", "2", "--calibration", str(file), "--json")
    assert json.loads(used.stdout)["report"]["settings"]["tau"] == list(taus.by_layer())
    assert taus.settings["text"] == "pydoc_data.topics" and taus.settings["provenance"]["torch"] == torch.__version__
    monkeypatch.setattr(measuring, "probe", lambda *_, **__: pytest.fail("measured again"))
    assert json.loads(calibrate(*RATE, "--json").stdout) == json.loads(file.read_text()) == asdict(taus)


def test_an_error_is_told_as_json(calibrate: Calibrate, file: Path) -> None:
    told = json.loads(calibrate("--error", "0.3", "--steps", "2", "--json", "--impl", "torch").stdout)
    assert told == json.loads(file.read_text())
    assert told["target"] == {"error": 0.3} and len(told["by_tau"]["errors"]) == 28
    assert [each.name for each in file.parent.iterdir()] == ["tau.json"]


def test_an_error_that_is_not_reached_is_told(calibrate: Calibrate) -> None:
    told = calibrate("--error", "0", "--steps", "2").stdout
    assert "28 layers stay above the error, though they retrieve at every step: 2, 3," in " ".join(told.split())


def test_a_file_of_another_model_is_refused(run: Run, calibrate: Calibrate, file: Path, tmp_path: Path) -> None:
    identity = ModelIdentity.of(tiny("llama"))
    LayerTaus(identity, [0.9] * 30, 0.9, {"rate": 0.5}, {"rate": 0.5}, [], {}, {}).write(file)
    refused(run("generate", "Hello", "--calibration", str(file)), "was measured on another model")
    refused(run("generate", "Hello", "--calibration", str(tmp_path / "no.json")), "cannot be read: No such file")


@pytest.mark.usefixtures("unasked")
@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ((), "A calibration has one target: give either a rate or an error."),
        ((*RATE, "--error", "0.1"), "A calibration has one target"),
        (("--rate", "1.5"), "rate=1.5 is not allowed: give a number from 0 to 1."),
        (("--rate", "nan"), "rate=nan is not allowed"),
        (("--error", "-0.1"), "error=-0.1 is not allowed"),
        ((*RATE, "--samples", "3"), "--samples"),
        ((*RATE, "--context", "0"), "--context"),
        ((*RATE, "--steps", "1"), "--steps"),
        ((*RATE, "--batch-size", "0"), "--batch-size"),
        ((*RATE, "--tau", "0.5"), "--tau cannot be given here"),
        ((*RATE, "--calibration", "tau.json"), "--calibration cannot be given here"),
        ((*RATE, "--method", "quest"), "The method 'quest' has no tau to calibrate: louiskv, louiskv_plus have."),
        ((*RATE, "--method", "louiskv_plus"), "trigger=every compares nothing with a tau"),
        ((*RATE, "--page-size", "16"), "The method louiskv has no setting --page-size"),
        ((*RATE, "--dense-layers", "30"), "dense_layers=30 leaves no layer that retrieves: the model has 30."),
        ((*RATE, "--context", "8190"), "need 8193 positions, the model has 8192."),
        ((*RATE, "--text", "/nope"), "The text /nope cannot be read"),
    ],
)
def test_what_cannot_be_calibrated_is_refused_before_anything_runs(
    calibrate: Calibrate, file: Path, flags: tuple[str, ...], message: str
) -> None:
    refused(calibrate(*flags), message)
    assert not file.exists()


@pytest.mark.usefixtures("unasked")
def test_where_nothing_can_be_written_is_found_out_at_once(calibrate: Calibrate, file: Path) -> None:
    file.mkdir(parents=True)
    refused(calibrate(*RATE), f"--output {file} is a folder: name a file in it.")
    file.rmdir()
    file.parent.rmdir()
    file.parent.write_text("a file in the place of a folder")
    refused(calibrate(*RATE), "cannot be written: File exists. Give another --output", code=1)


def test_ctrl_c_leaves_the_file_that_was_there(
    calibrate: Calibrate, file: Path, loaded: Loaded, monkeypatch: pytest.MonkeyPatch
) -> None:
    taus = LayerTaus(ModelIdentity.of(loaded[0]), [0.9] * 30, 0.9, {"rate": 0.5}, {"rate": 0.5}, [], {}, {})
    taus.write(file)

    def forward(*args: object, **kwargs: object) -> torch.Tensor:
        raise KeyboardInterrupt

    monkeypatch.setattr(loaded[0], "forward", forward)
    assert calibrate(*RATE).exit_code == 130
    assert LayerTaus.load(file) == taus


@pytest.mark.usefixtures("unasked")
@pytest.mark.parametrize("content", ["", "notes", '{"format": 1, "key": "x"}'])
def test_a_file_of_something_else_is_refused_and_kept(calibrate: Calibrate, file: Path, content: str) -> None:
    file.parent.mkdir()
    file.write_text(content)
    refused(calibrate(*RATE), f"{file} is there already and holds no calibration. Give another --output.")
    assert file.read_text() == content


def test_what_is_held_out_comes_from_a_part_of_its_own(
    calibrate: Calibrate, haystack: Haystack, monkeypatch: pytest.MonkeyPatch
) -> None:
    split, drawn = haystack.split(1 / 4), dict[str, int]()
    monkeypatch.setattr(Haystack, "split", lambda *_: split)
    prose = Haystack.prose

    def counted(part: Haystack, *args: Any) -> list[int]:
        drawn[part.name] = drawn.get(part.name, 0) + 1
        return prose(part, *args)

    monkeypatch.setattr(Haystack, "prose", counted)
    told = json.loads(calibrate(*RATE, "--samples", "5", "--context", "8", "--steps", "2", "--json").stdout)
    assert drawn == {"pydoc_data.topics (beginning)": 4, "pydoc_data.topics (end)": 1}
    assert (told["settings"]["samples"], told["settings"]["held_out"]) == (4, 1)
