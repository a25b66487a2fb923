"""What is read from a folder, and how it is grouped and put into figures."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from louiskv.errors import ResultsError, SettingsError
from louiskv.evaluation.summary import summarise
from louiskv.methods import METHODS
from louiskv.reporting.comparing import between
from louiskv.reporting.content import Figure, Fold, Section, Table
from louiskv.reporting.fronts import front
from louiskv.reporting.inside import inside
from louiskv.reporting.intervals import interval
from louiskv.reporting.records import Found, Measured, by_budget, by_model, comparable, find, short, told_apart
from louiskv.reporting.scores import curve, fidelity, scores
from louiskv.reporting.speed import speed
from louiskv.reporting.styles import VIOLET, style_at, style_of
from tests.reporting.synthetic import HEADS, LAYERS, Hat, taus, write


def test_each_record_is_read_once_and_other_files_are_left_out(tmp_path: Path) -> None:
    hat = Hat()
    folder = write(tmp_path, [hat.task("louiskv", 128), hat.fidelity("louiskv", 128)])
    shutil.copy(folder / "task.jsonl", folder / "copy.jsonl")
    (folder / "prompts.jsonl").write_text('{"prompt": "hello"}\n')
    (folder / "heads.json").write_text("[1, 2]")
    (folder / "notes.json").write_text("hello")
    (folder / "empty.jsonl").write_text("")
    found = find(folder)
    assert [record["kind"] for record in found.records] == ["task", "fidelity"]
    assert found.left_out == ["empty.jsonl", "heads.json", "notes.json", "prompts.jsonl"]
    assert found.files == ["copy.jsonl", "fidelity.jsonl", "task.jsonl", "tau.json"]
    assert list(found.taus) == ["tau.json"]


def test_a_sample_counts_once_however_it_was_put_into_batches() -> None:
    hat = Hat()
    four = hat.task("louiskv", 128, scores=[1, 1, 1, 0], fetched_per_token=10.0)
    two = hat.task("louiskv", 128, samples=[4, 5], scores=[0, 0], agreement=[0, 0], fetched_per_token=40.0)
    again = hat.task("louiskv", 128, samples=[2, 3], scores=[1, 0], agreement=[0, 0], fetched_per_token=10.0)
    (row,) = summarise([four, two])
    assert row.samples == {"passkey": [1, 1, 1, 0, 0, 0]} and row.fetched == 20
    assert summarise([four, two, again])[0].samples == row.samples


def test_a_file_that_is_still_written_stays_as_it_is(tmp_path: Path) -> None:
    path = write(tmp_path, [Hat().task("louiskv", 128)]) / "task.jsonl"
    text = path.read_text() + '{"format": 1, "ke'
    path.write_text(text)
    assert len(find(tmp_path).records) == 1
    assert path.read_text() == text


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"format": 99, "key": "x"}', r"Line 2 of .*task\.jsonl has format 99.* Mend the file"),
        ("hello", r"Line 2 of .*task\.jsonl is no result of louiskv\. Mend the file"),
        ('{"format": 1, "key": "x"}', r"A result in .*task\.jsonl has no kind"),
    ],
)
def test_a_broken_file_is_named(tmp_path: Path, line: str, message: str) -> None:
    path = write(tmp_path, [Hat().task("louiskv", 128)]) / "task.jsonl"
    path.write_text(f"{path.read_text()}{line}\n")
    with pytest.raises(ResultsError, match=message):
        find(tmp_path)


def test_a_broken_calibration_is_named(tmp_path: Path) -> None:
    (tmp_path / "tau.json").write_text(json.dumps({"global_tau": 3}))
    with pytest.raises(SettingsError, match=r"tau\.json holds no calibrated taus"):
        find(tmp_path)


def test_a_calibration_goes_to_its_model(tmp_path: Path) -> None:
    (known,) = by_model(find(write(tmp_path, [Hat().task("louiskv", 128)])))
    assert known.title == "tiny/model in float32" and list(known.taus) == ["tau.json"]
    (tmp_path / "task.jsonl").unlink()
    (alone,) = by_model(find(tmp_path))
    assert alone.title == "tiny/model" and alone.taus["tau.json"] == taus()


def test_a_folder_in_a_name_is_left_out() -> None:
    assert short("/root/models/small") == "small"
    assert short("owner/name") == "owner/name"
    assert short("") == "a model without a name"


def test_settings_are_named_where_they_differ() -> None:
    hat = Hat()
    records = [hat.task("louiskv", 128, settings={"tau": tau, "sink": 4}) for tau in (0.5, 0.8)] + [
        hat.task("quest", 128, settings={"page_size": 16})
    ]
    names = [(record["base"], record["method"]) for record in told_apart(records)]
    assert names == [("louiskv", "louiskv tau=0.5"), ("louiskv", "louiskv tau=0.8"), ("quest", "quest")]

    each_layer = [{**records[0], "settings": {"tau": repr(tuple([tau] * 30))}} for tau in (0.875, 0.75)]
    names = [record["method"] for record in told_apart([records[0], *each_layer])]
    assert len(set(names)) == 3 and all(len(name) == len("louiskv tau=#123456") for name in names[1:])


def test_methods_without_a_budget_stand_at_each() -> None:
    hat = Hat()
    records = [hat.fidelity("full", None), hat.fidelity("quest", 256), hat.fidelity("quest", 128)]
    assert [(title, [each["method"] for each in own]) for title, own in by_budget(records)] == [
        (", budget 128", ["full", "quest"]),
        (", budget 256", ["full", "quest"]),
    ]
    assert by_budget(records[:1]) == [("", records[:1])]


def test_means_are_compared_over_runs_that_all_have() -> None:
    hat = Hat()
    # An evaluation that was stopped: quest lacks the last task.
    stopped = [hat.task(name, 128, task) for task in ("passkey", "ledger") for name in ("louiskv", "h2o", "quest")][:-1]
    kept, left = comparable(stopped)
    assert [record["task"] for record in kept] == ["passkey", "ledger", "passkey", "ledger"] and left == ["quest"]
    # Few lack a run, or many a task that is new: what is kept is the most.
    more = [*stopped, *(hat.task("louiskv", 128, f"task {number}") for number in range(2))]
    kept, left = comparable(more)
    assert {record["method"] for record in kept} == {"louiskv", "h2o"} and left == ["quest"]
    assert {record["task"] for record in kept} == {"passkey", "ledger"}
    assert comparable([]) == ([], [])


def test_two_models_of_a_name_are_told_apart() -> None:
    hat = Hat()
    records = [{**hat.task("louiskv", 128), "model_hash": known} for known in ("0123456789", "abcdef0123")]
    assert [each.title for each in by_model(Found(records=records))] == [
        "tiny/model 012345 in float32",
        "tiny/model abcdef in float32",
    ]


def test_each_machine_has_its_own_times() -> None:
    hat = Hat()
    records = [{**hat.decode("louiskv", 128, 1024), "base": "louiskv", "label": "louiskv 128"} for _ in range(2)]
    records[1] = {**records[1], "provenance": {**records[1]["provenance"], "device": "some GPU"}}
    section = speed(by_model(Found(records=records))[0])
    assert section is not None
    assert [part.title for part in section.parts if isinstance(part, Fold)] == [
        "cpu; some processor; threads: 1",
        "some GPU; some processor; threads: 1",
    ]


def test_only_methods_of_one_run_took_turns() -> None:
    hat = Hat()
    both = [{**hat.decode(name, 128, 1024), "base": name, "label": f"{name} 128"} for name in ("louiskv", "quest")]
    other = {**both[1], "run": "2027"}
    for records, turns in ((both, True), ([both[0], other], False)):
        section = speed(by_model(Found(records=records))[0])
        assert section is not None and ("took turns" in section.text) == turns


def test_maps_name_the_layers_that_are_managed() -> None:
    record = {**Hat().probe("louiskv", 128), "base": "louiskv", "label": "louiskv 128", "layers": [5, 11, 17, 23]}
    section = inside(by_model(Found(records=[record]))[0])
    assert section is not None
    maps = {part.title.partition(":")[0]: part.parts for part in section.parts if isinstance(part, Fold)}
    (drawn,) = maps["Recall by layer and KV head"]
    assert isinstance(drawn, Figure) and all(f">{layer}</text>" in drawn.svg for layer in record["layers"])


def test_means_are_over_all_samples() -> None:
    hat = Hat()
    records = [hat.task("louiskv", 128, "passkey", 512), hat.task("louiskv", 128, "passkey", 1024)]
    (row,) = summarise(records)
    scores = records[0]["scores"] + records[1]["scores"]
    assert row.samples == {"passkey": scores}
    assert row.mean_score == pytest.approx(np.mean(scores))


def test_the_index_and_what_is_selected_ahead_are_told_where_they_are_known() -> None:
    hat = Hat()
    known = [hat.fidelity("freekv", 128, ahead_rate=0.75), hat.fidelity("louiskv", 128), hat.fidelity("quest", 128)]
    # As it was written before this was told.
    del known[2]["index_bytes"], known[2]["ahead_rate"]
    cells = columns(fidelity, known)
    assert cells["ahead"] == ["0.75", "-", "-"]
    assert cells["index"] == [f"{500 / 409600:.1%}", f"{500 / 409600:.1%}", "-"]
    assert cells["device"] == [f"{13300 / 409600:.1%}", f"{13300 / 409600:.1%}", f"{12800 / 409600:.1%}"]
    assert "ahead" not in columns(fidelity, known[1:])


def test_scores_and_benchmarks_tell_them_too() -> None:
    hat, names = Hat(), ("freekv", "louiskv", "quest")
    for kind, draw in (("task", scores), ("decode", speed)):
        known = [hat.task(name, 128) if kind == "task" else hat.decode(name, 128, 1024) for name in names]
        del known[2]["index_bytes"], known[2]["ahead_rate"]
        cells = columns(draw, known)
        assert cells["ahead"] == [f"{known[0]['ahead_rate']:.2f}", "-", "-"]
        assert cells["index"][0].endswith("%") and cells["index"][2] == "-"


def columns(draw: Callable[[Measured], Section | None], records: list[dict[str, Any]]) -> dict[str, list[str]]:
    """What the only table of a section says of records, by column."""
    known = [{**record, "base": record["method"], "label": record["method"]} for record in records]
    section = draw(by_model(Found(records=known))[0])
    assert section is not None
    (table,) = (part for part in section.parts if isinstance(part, Table))
    return {name: [row[place].text for row in table.rows] for place, name in enumerate(table.columns)}


def test_errors_of_attention_stand_over_both_costs() -> None:
    hat, known = Hat(), list[dict[str, Any]]()
    for name in ("louiskv", "oracle_top_k", "full"):
        for budget in (128, 256):
            record = hat.probe(name, budget)
            error = [[0.0] * HEADS] * LAYERS if name == "full" else record["error"]
            known.append({**record, "base": name, "label": f"{name} {budget}", "error": error})
    section = inside(by_model(Found(records=known))[0])
    assert section is not None
    figures = {name: part.svg for part in section.parts if isinstance(part, Figure) for name in _titles(part)}
    for cost in ("what is moved", "what lies on the device"):
        written = re.findall(r">([^<>\n]+)</text>", figures[f"Error of attention, by {cost}"])
        assert {"louiskv", "oracle_top_k"} <= set(written) and "full" not in written


def _titles(figure: Figure) -> list[str]:
    return re.findall(r'aria-label="([^"]*)"', figure.svg)


def test_the_front_has_what_no_other_beats() -> None:
    points = [(0.0, 0.2), (0.0, 0.5), (1.0, 0.4), (2.0, 0.9), (2.0, 0.8), (3.0, 0.9)]
    assert front(points, 1) == [(0.0, 0.5), (2.0, 0.9)]
    assert front(points, -1) == [(0.0, 0.2)]


def test_between_two_points_it_is_straight_over_the_logarithm() -> None:
    points = [(1.0, 0.1), (100.0, 0.001)]
    assert between(points, 10, logarithmic=True) == pytest.approx(0.01)
    assert between(points, 10, logarithmic=False) == pytest.approx(0.0505)
    assert between(points, 100, logarithmic=True) == 0.001
    assert between(points, 0.5, logarithmic=True) is None
    assert between(points, 101, logarithmic=True) is None
    assert between([(0.0, 0.5), *points], 0.5, logarithmic=True) is None


def test_an_interval_is_wider_for_fewer_samples_and_holds_the_mean() -> None:
    assert interval([[1.0] * 8]) == (1.0, 1.0)
    few, many = interval([[0.0, 1.0] * 4]), interval([[0.0, 1.0] * 100])
    assert few[0] < many[0] < 0.5 < many[1] < few[1]
    # A proportion of 200: 1.96 standard errors.
    assert many == pytest.approx((0.5 - 0.069, 0.5 + 0.069), abs=0.02)
    # Two tasks of which one is certain: half as wide.
    both = interval([[0.0, 1.0] * 100, [1.0] * 200])
    assert both[1] - both[0] == pytest.approx((many[1] - many[0]) / 2, abs=0.02)


def test_a_curve_goes_as_far_as_all_do() -> None:
    records = [{"bin": 4, "curves": {"kl": [1.0, 2.0, 3.0]}}, {"bin": 4, "curves": {"kl": [3.0, 4.0]}}]
    assert curve(records, "kl") == ([2.0, 6.0], [2.0, 3.0])


def test_no_two_methods_look_the_same() -> None:
    styles = [style_of(name) for name in ("sdpa", *METHODS)]
    assert len(set(styles)) == len(styles)
    assert style_of("louiskv tau=0.5 128") == style_of("louiskv")


def test_our_own_method_has_a_style_that_no_place_in_a_list_gives() -> None:
    style = style_of("louiskv_plus")
    assert (style.color, style.marker) == (VIOLET, "*")
    assert all((style_at(place).color, style_at(place).marker) != (VIOLET, "*") for place in range(49))
