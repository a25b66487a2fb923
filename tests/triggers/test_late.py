"""For the next step, in the background."""

import pytest
import torch
from torch import Tensor

from louiskv import SettingsError
from louiskv.triggers import AnchorCosine, Cosine, Coverage, Estimate, Every, Late, TriggerState
from louiskv.triggers.late import LateState
from tests.triggers.stubs import Told, at_angle


class Scripted(TriggerState):
    """Fires as it was told to, and writes down what it hears."""

    def __init__(self, *fires: list[bool]) -> None:
        self.fires = [torch.tensor([each]) for each in fires]
        self.heard: list[list[bool]] = []
        self.others: list[object] = []
        self.similarity = torch.tensor([0.5])

    def fire(self, query: Tensor, num_kv_heads: int, estimate: Estimate | None = None) -> Tensor:
        self.others.append(estimate)
        return self.fires.pop(0)

    def chosen(self, where: Tensor) -> None:
        self.heard.append(where[0].tolist())

    def retrieved(self, where: Tensor, estimate: Estimate) -> None:
        self.others.append((where.tolist(), estimate))

    def reset(self) -> None:
        self.others.append("reset")

    def select_batch(self, index: Tensor) -> None:
        self.others.append(index.tolist())

    def put(self, row: int, other: TriggerState | None, other_row: int, batch_size: int) -> None:
        self.others.append((row, other, other_row, batch_size))


def test_nothing_is_selected_ahead_where_a_correction_was_made_and_each_hears_of_the_other() -> None:
    correct, when = Scripted([True, False, True, False]), Scripted([True, True, False, False])
    state, told = LateState(correct, when), Told([0.0])
    assert state.fire(at_angle(0, 0, 0, 0), 4, told).tolist() == [[True, False, True, False]]
    assert state.ahead is not None and state.ahead.tolist() == [[False, True, False, False]]
    assert correct.heard == [[False, True, False, False]], "where the other selects ahead"
    assert when.heard == [[True, False, True, False]], "where the other corrects"
    assert correct.others == when.others == [told], "both may ask the index"
    assert state.similarity is correct.similarity


def test_what_is_chosen_from_outside_and_which_sequences_there_are_concerns_both() -> None:
    correct, when = Scripted(), Scripted()
    state = LateState(correct, when)
    state.chosen(torch.tensor([[True, False]]))
    state.select_batch(torch.tensor([1, 0]))
    told = Told([0.5])
    state.retrieved(torch.tensor([[False, True]]), told)
    state.reset()
    assert correct.heard == when.heard == [[True, False]]
    assert correct.others == when.others == [[1, 0], ([[False, True]], told), "reset"]


def test_as_freekv_has_it_every_step_selects_ahead() -> None:
    state = Late(Cosine(0.5, per_head=True)).start()
    turns = [(0, 0), (0, 0), (0, 90), (0, 90)]
    got = []
    for angles in turns:
        fired = state.fire(at_angle(*angles), 2)
        assert state.ahead is not None
        got.append((fired[0].tolist(), state.ahead[0].tolist()))
    expected = [[True, True], [False, False], [False, True], [False, False]]
    assert got == [(fired, [not each for each in fired]) for fired in expected]


def test_with_coverage_only_what_is_uncovered_is_selected_ahead() -> None:
    state = Late(Cosine(-1.0, per_head=True), when=Coverage(rho=0.8)).start()
    fired, ahead = [], []
    for step, covered in enumerate([0.0, 0.9, 0.6, 0.3, 0.2]):
        fired.append(bool(state.fire(at_angle(30 * step), 1, Told([covered]))))
        assert state.ahead is not None
        ahead.append(bool(state.ahead))
    assert fired == [True, False, False, False, False]
    assert ahead == [False, False, True, False, True], "the peak is that since the last selection ahead"


def test_a_correction_is_a_selection_to_coverage() -> None:
    """A correction of one KV head moves the anchor of its coverage and begins its peak."""
    state = Late(Cosine(0.0, per_head=True), when=Coverage(rho=0.8)).start()
    state.fire(at_angle(0, 0), 2, Told([0.0, 0.0]))
    state.fire(at_angle(30, 30), 2, Told([0.9, 0.9]))
    assert state.fire(at_angle(60, 180), 2, Told([0.9, 0.1])).tolist() == [[False, True]]
    assert state.ahead is not None and not state.ahead.any(), "corrected already"
    state.fire(at_angle(90, 210), 2, Told([0.5, 0.2]))
    assert state.ahead.tolist() == [[True, False]], "0.2 is the most since the correction"


def test_a_selection_ahead_is_an_anchor_to_the_correction() -> None:
    state = Late(AnchorCosine(0.0), when=Every(2)).start()
    assert [bool(state.fire(at_angle(turn), 1)) for turn in (0, 40, 80, 120, 160)] == [True, *[False] * 4]
    assert Late(AnchorCosine(0.0)).start().fire(at_angle(0), 1).all()
    # Without selections in between, 120 degrees are too far.
    state = Late(AnchorCosine(0.0), when=Every(9)).start()
    assert [bool(state.fire(at_angle(turn), 1)) for turn in (0, 40, 80, 120, 160)] == [True, False, False, True, False]


def test_settings() -> None:
    cosine, coverage = Cosine(tau=(0.1, 0.2), per_head=True), Coverage(rho=(0.5, 0.6))
    assert Late(cosine, coverage).at_layer(1) == Late(Cosine(0.2, per_head=True), Coverage(0.6))
    assert Late(cosine).at_layer(0) == Late(Cosine(0.1, per_head=True))
    assert Late().late and not Cosine().late
    assert [Late(when=when).gap for when in (Every(1), Every(4), Coverage(), Coverage(cap=3))] == [2, 5, None, 4]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"correct": Late()}, "correct=Late.* is late itself"),
        ({"when": Late()}, "when=Late.* is late itself"),
        ({"correct": 0.9}, "correct=0.9 .* louiskv.triggers.base.Trigger"),
        ({"when": "often"}, "when='often' .* louiskv.triggers.base.Trigger"),
    ],
)
def test_wrong_settings_say_what_is_allowed(wrong: dict[str, object], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        Late(**wrong)  # type: ignore[arg-type]
