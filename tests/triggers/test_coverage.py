"""Where what is resident no longer covers the attention that it could."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from louiskv import SettingsError
from louiskv.triggers import Coverage, TriggerState
from tests.triggers.stubs import Told, at_angle

# Queries that turn at every step, further than any guard here allows.
TURNING = range(0, 3600, 30)


def fired(state: TriggerState, covered: list[float], first: int = 1) -> list[bool]:
    """What one KV head does at steps with these coverages, its query turning at each."""
    return [bool(state.fire(at_angle(TURNING[first + step]), 1, Told([each]))) for step, each in enumerate(covered)]


def begun(trigger: Coverage) -> TriggerState:
    """After the first step, which fires."""
    state = trigger.start()
    assert state.fire(at_angle(TURNING[0]), 1, Told([0.0]))
    return state


def test_the_first_step_fires_and_asks_nothing() -> None:
    told = Told([1.0, 1.0])
    assert Coverage().start().fire(at_angle(0, 0, 0, 0), 2, told).tolist() == [[True, True]]
    assert told.asked == 0


def test_fires_where_coverage_falls_under_a_share_of_the_peak() -> None:
    state = begun(Coverage(rho=0.8))
    assert fired(state, [0.5, 0.7, 0.57, 0.55]) == [False, False, False, True]


def test_the_peak_is_that_since_the_last_selection() -> None:
    state = begun(Coverage(rho=0.8))
    assert fired(state, [0.9, 0.7, 0.3, 0.25, 0.2]) == [False, True, False, False, True]
    state.chosen(torch.tensor([[True]]))
    assert fired(state, [0.05, 0.045, 0.03], first=6) == [False, False, True]


def test_the_first_peak_is_what_is_covered_when_the_selection_has_come() -> None:
    state = begun(Coverage(rho=0.8))
    state.retrieved(torch.tensor([[True]]), Told([0.9]))
    assert fired(state, [0.3]) == [True], "a fall right after the selection is seen"
    state.retrieved(torch.tensor([[False]]), Told([0.9]))
    assert fired(state, [0.3, 0.23], first=2) == [False, True], "another one's selection changes nothing"
    told = Told([0.9])
    Coverage(against="best").start().retrieved(torch.tensor([[True]]), told)
    assert told.asked == 0


def test_what_stays_covered_never_fires() -> None:
    assert not any(fired(begun(Coverage(rho=0.9)), [0.9] * 50))
    assert not any(fired(begun(Coverage(rho=0.0)), [0.9, 0.0, 0.0]))


@settings(deadline=None, max_examples=60, derandomize=True)
@given(rho=st.floats(0, 1), covered=st.lists(st.floats(0, 1, width=32), min_size=1, max_size=20))
def test_agrees_with_a_loop(rho: float, covered: list[float]) -> None:
    peak, expected = 0.0, []
    for each in covered:
        peak = max(peak, each)
        expected.append(bool(torch.tensor(each) < rho * torch.tensor(peak)))
        peak = 0.0 if expected[-1] else peak
    assert fired(begun(Coverage(rho=rho)), covered) == expected


def test_a_query_that_has_hardly_turned_asks_nothing() -> None:
    state, told = Coverage(rho=1.0, guard=0.9).start(), Told([0.5])
    state.fire(at_angle(0), 1, told)
    # The cosine of 25 degrees is 0.906, that of 26 degrees 0.899, and it is that to the query that last selected.
    assert not any(state.fire(at_angle(angle), 1, told) for angle in (10, 25, -25, 0))
    assert told.asked == 0
    told.covered = torch.tensor([0.4])
    assert not state.fire(at_angle(26), 1, told) and told.asked == 1
    told.covered = torch.tensor([0.3])
    assert not state.fire(at_angle(20), 1, told) and told.asked == 1
    assert state.fire(at_angle(30), 1, told) and told.asked == 2
    assert not state.fire(at_angle(50), 1, told) and told.asked == 2, "what fired is the query to compare with"


def test_only_kv_heads_that_have_turned_fire() -> None:
    state = Coverage(rho=0.9, guard=0.98).start()
    state.fire(at_angle(0, 0, 0, 0), 2, Told([0.0, 0.0]))
    assert not state.fire(at_angle(90, 90, 90, 90), 2, Told([0.8, 0.8])).any()
    told = Told([0.5, 0.5])
    assert state.fire(at_angle(90, 90, 0, 0), 2, told).tolist() == [[True, False]]
    assert told.asked == 1


def test_each_kv_head_has_its_own_peak_and_anchor() -> None:
    state = Coverage(rho=0.8).start()
    state.fire(at_angle(0, 0), 2, Told([0.0, 0.0]))
    told = [[0.9, 0.3], [0.7, 0.3], [0.3, 0.3], [0.3, 0.2], [0.2, 0.2]]
    turns = [at_angle(turn, turn) for turn in TURNING[1:]]
    got = [state.fire(turn, 2, Told(each))[0].tolist() for turn, each in zip(turns, told, strict=False)]
    assert got == [[False, False], [True, False], [False, False], [False, True], [True, False]]


def test_a_sequence_does_not_remember_what_its_neighbour_asked() -> None:
    """The one in the batch turns when the other does not, and is told more than it would have asked for."""
    angles = [[0, 0], [0, 90], [90, 0], [120, 120], [150, 150]]
    told = [[0.0, 0.0], [0.9, 0.9], [0.5, 0.2], [0.44, 0.3], [0.46, 0.25]]
    together, alone = Coverage(rho=0.9).start(), [Coverage(rho=0.9).start() for _ in range(2)]
    for turns, covered in zip(angles, told, strict=True):
        queries = torch.cat([at_angle(turn) for turn in turns])
        got = together.fire(queries, 1, Told(covered))[:, 0].tolist()
        expected = [
            bool(state.fire(queries[row : row + 1], 1, Told([covered[row]]))) for row, state in enumerate(alone)
        ]
        assert got == expected


def test_no_selection_serves_longer_than_the_cap() -> None:
    state, told = Coverage(cap=3).start(), Told([1.0])
    assert [bool(state.fire(at_angle(0), 1, told)) for _ in range(7)] == [step % 3 == 0 for step in range(7)]
    assert told.asked == 0
    assert Coverage(cap=3).gap == 3 and Coverage().gap is None


def test_the_yardstick_may_be_what_the_best_units_would_get() -> None:
    state = begun(Coverage(rho=0.8, against="best"))
    told = [Told([0.5], [0.6]), Told([0.5], [0.63]), Told([0.1], [0.1])]
    got = [bool(state.fire(at_angle(TURNING[step + 1]), 1, each)) for step, each in enumerate(told)]
    assert got == [False, True, False], "whatever it was before"
    assert [each.asked_best for each in told] == [1, 1, 1]
    peak = Told([0.5], [0.9])
    begun(Coverage()).fire(at_angle(90), 1, peak)
    assert peak.asked_best == 0, "a selection at each step is only for those who want it"


def test_while_there_are_no_units_nothing_needs_to_be_retrieved() -> None:
    state = Coverage(rho=1.0).start()
    assert state.fire(at_angle(0), 1, None), "the first step fires in any case"
    assert not state.fire(at_angle(90), 1, None)
    assert not state.fire(at_angle(180), 1, Told([0.5]))
    assert state.fire(at_angle(270), 1, Told([0.4]))


def test_a_row_without_units_fires_when_it_has_some() -> None:
    state = begun(Coverage(rho=0.9))
    assert fired(state, [0.0, 0.0, 0.8, 0.5]) == [False, False, False, True]


def test_forgetting_fires_and_begins_a_peak() -> None:
    state = begun(Coverage(rho=0.9))
    assert not any(fired(state, [0.9]))
    state.reset()
    assert state.fire(at_angle(TURNING[1]), 1, Told([0.9]))
    assert fired(state, [0.3, 0.2], first=2) == [False, True]


def test_peaks_and_anchors_follow_their_sequences() -> None:
    state = Coverage(rho=0.9).start()
    state.fire(torch.cat([at_angle(0), at_angle(90)]), 1, Told([0.0, 0.0]))
    state.fire(torch.cat([at_angle(180), at_angle(270)]), 1, Told([0.9, 0.4]))
    state.select_batch(torch.tensor([1, 1, 0]))
    told = Told([0.5, 0.3, 0.5])
    assert state.fire(at_angle(180).repeat(3, 1, 1), 1, told)[:, 0].tolist() == [False, True, True]
    told = Told([0.4, 0.1, 0.1])
    assert state.fire(torch.cat([at_angle(90), at_angle(180), at_angle(180)]), 1, told)[:, 0].tolist() == [False] * 3
    assert told.asked == 0, "the first stands at 90 degrees since it selected, the others at 180"


def test_a_rho_for_each_layer() -> None:
    trigger = Coverage(rho=(0.5, 0.9), guard=0.5, cap=7, against="best")
    assert trigger.at_layer(1) == Coverage(0.9, guard=0.5, cap=7, against="best")
    with pytest.raises(SettingsError, match="rho has 2 numbers"):
        trigger.at_layer(2)
    with pytest.raises(SettingsError, match="at_layer"):
        trigger.start()
    assert fired(begun(trigger.at_layer(0)), [0.9, 0.5])[0] is False


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"rho": 1.1}, "rho=1.1 .* from 0 to 1"),
        ({"rho": (0.5, -0.1)}, "rho=-0.1 .* from 0 to 1"),
        ({"rho": "most"}, "rho='most' .* number"),
        ({"guard": -2}, "guard=-2 .* from -1 to 1"),
        ({"cap": 0}, "cap=0 .* at least 1"),
        ({"cap": 2.0}, "cap=2.0 .* whole number"),
        ({"against": "last"}, "against='last' .* peak, best"),
    ],
)
def test_wrong_settings_say_what_is_allowed(wrong: dict[str, object], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        Coverage(**wrong)  # type: ignore[arg-type]
