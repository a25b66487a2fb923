"""Head scores: which heads they choose, and how they are saved, found and refused."""

import json
import math
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from louiskv import SettingsError
from louiskv.heads import HeadScores
from louiskv.measured import ModelIdentity
from tests.families import tiny


@pytest.fixture(autouse=True)
def cache_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where this test's scores are saved."""
    monkeypatch.setenv("LOUISKV_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def scores_of(model: ModelIdentity, seed: int = 0) -> HeadScores:
    echo, induction = torch.rand(2, 4, 2, generator=torch.Generator().manual_seed(seed)).tolist()
    return HeadScores(model, echo, induction, {"block": 8, "copies": 3, "seed": seed})


LLAMA = ModelIdentity("some/llama", "ab" * 32, [0.5, -0.25, 1.0])


@settings(deadline=None, max_examples=60, derandomize=True)
@given(
    num_heads=st.lists(st.sampled_from([0, 1, 2, 8]), min_size=1, max_size=8).filter(any),
    echo=st.sampled_from([0.0, 0.01, 0.25, 1.0]),
    induction=st.sampled_from([0.0, 0.14, 0.5]),
    seed=st.integers(0, 99),
)
def test_the_best_by_either_score_retrieve(num_heads: list[int], echo: float, induction: float, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    # Few different scores, so that many are equal.
    by_echo, by_induction = (
        [torch.randint(0, 6, (number,), generator=generator).div(10).tolist() for number in num_heads] for _ in range(2)
    )
    got = HeadScores(LLAMA, by_echo, by_induction, {}).best(echo, induction)
    chosen = set()
    for scores, share in ((by_echo, echo), (by_induction, induction)):
        left = [(layer, head) for layer, number in enumerate(num_heads) for head in range(number)]
        for _ in range(math.ceil(share * len(left))):
            # The first of the greatest.
            best = max(left, key=lambda place: scores[place[0]][place[1]])
            chosen.add(best)
            left.remove(best)
    assert [set(heads) for heads in got] == [
        {head for head in range(number) if (layer, head) in chosen} for layer, number in enumerate(num_heads)
    ]
    assert all(list(heads) == sorted(heads) for heads in got)


def test_saved_and_loaded_they_are_the_same(tmp_path: Path) -> None:
    scores = scores_of(LLAMA)
    path = scores.save(tmp_path / "new folder" / "scores.json")
    assert path == tmp_path / "new folder" / "scores.json"
    assert HeadScores.load(path) == scores
    assert list(path.parent.iterdir()) == [path], "nothing else is left behind"


def test_saved_without_a_path_they_are_found_for_their_model(cache_folder: Path) -> None:
    others = [replace(LLAMA, sample=[0.5, -0.25, 2.0]), replace(LLAMA, shapes="cd" * 32)]
    assert HeadScores.find(LLAMA) is None
    for number, model in enumerate([*others, LLAMA]):
        path = scores_of(model, number).save()
        assert cache_folder in path.parents
        assert HeadScores.find(model) == path
    assert HeadScores.find(others[0]) != HeadScores.find(LLAMA)
    assert HeadScores.find(replace(LLAMA, name="the same by another name")) is not None
    assert HeadScores.find(replace(LLAMA, sample=[9.0, 9.0, 9.0])) is None
    again = scores_of(LLAMA, 7)
    again.save()
    path_again = HeadScores.find(LLAMA)
    assert path_again is not None and HeadScores.load(path_again) == again


def test_a_model_is_known_by_its_weights_in_any_dtype() -> None:
    first, second, wider = tiny("llama"), tiny("llama", seed=1), tiny("llama", intermediate_size=80)
    identity = ModelIdentity.of(first)
    assert identity.is_of(ModelIdentity.of(tiny("llama")))
    assert not identity.is_of(ModelIdentity.of(second))
    assert not identity.is_of(ModelIdentity.of(wider))
    for dtype in (torch.bfloat16, torch.float16):
        assert ModelIdentity.of(nn.Module.to(tiny("llama"), dtype)).is_of(identity)
        assert not ModelIdentity.of(nn.Module.to(tiny("llama", seed=1), dtype)).is_of(identity)
    # What is written is what can be read.
    assert ModelIdentity(**json.loads(json.dumps(asdict(identity)))) == identity


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "nowhere.json"
    with pytest.raises(SettingsError, match=r"nowhere\.json cannot be read: No such file"):
        HeadScores.load(path)
    with pytest.raises(SettingsError, match="cannot be read: Is a directory"):
        HeadScores.load(tmp_path)


def as_dict() -> dict[str, object]:
    return asdict(scores_of(LLAMA))


@pytest.mark.parametrize(
    "text",
    [
        "",
        '{"model": ',
        "[1, 2]",
        "7",
        "null",
        json.dumps({key: value for key, value in as_dict().items() if key != "model"}),
        json.dumps({key: value for key, value in as_dict().items() if key != "echo"}),
        json.dumps({**as_dict(), "version": 2}),
        json.dumps({**as_dict(), "model": "some/llama"}),
        json.dumps({**as_dict(), "model": {"name": "some/llama"}}),
    ],
)
def test_a_damaged_file_is_named(text: str, tmp_path: Path) -> None:
    path = tmp_path / "scores.json"
    path.write_text(text)
    with pytest.raises(SettingsError, match=r"scores\.json holds no head scores: .*louiskv\.score_heads\(model\)"):
        HeadScores.load(path)


@pytest.mark.parametrize("wrong", [{"echo": 3}, {"echo": [[0.1], "high"]}, {"induction": None}])
def test_a_file_with_something_else_under_the_right_keys_is_refused(wrong: dict[str, object], tmp_path: Path) -> None:
    path = tmp_path / "scores.json"
    path.write_text(json.dumps({**as_dict(), **wrong}))
    with pytest.raises(SettingsError, match="holds no head scores"):
        HeadScores.load(path)


def test_bytes_that_are_no_text_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "scores.json"
    path.write_bytes(b"\xff\xfe\x00\x81")
    with pytest.raises(SettingsError, match="holds no head scores"):
        HeadScores.load(path)


def test_a_damaged_file_does_not_hide_a_sound_one() -> None:
    # The same model in another dtype has a file of its own.
    path = scores_of(LLAMA).save()
    path.with_name(f"{LLAMA.shapes[:16]}-00000000.json").write_text("{")
    assert HeadScores.find(LLAMA) == path
