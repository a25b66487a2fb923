"""Where the query has turned: away from the one before, or from the one that last selected."""

import pytest
import torch

from louiskv import SettingsError
from louiskv.triggers import AnchorCosine, Cosine
from tests.triggers.stubs import at_angle


def test_cosine_is_the_mean_over_query_heads() -> None:
    generator = torch.Generator().manual_seed(0)
    first, second = torch.randn(2, 3, 6, 8, generator=generator)
    state = Cosine(tau=0.0).start()
    assert state.fire(first, 2).all(), "the first step fires"
    fired = state.fire(second, 2)
    for sequence in range(3):
        cosines = [float(a @ b / (a.norm() * b.norm())) for a, b in zip(first[sequence], second[sequence], strict=True)]
        mean = sum(cosines) / len(cosines)
        assert state.similarity is not None
        assert float(state.similarity[sequence]) == pytest.approx(mean, abs=1e-6)
        assert fired[sequence].tolist() == [mean < 0.0] * 2


def test_the_same_query_is_the_same_segment() -> None:
    query = torch.randn(1, 4, 8)
    state = Cosine(tau=0.99).start()
    assert [bool(state.fire(query, 1)[0, 0]) for _ in range(3)] == [True, False, False]
    state.reset()
    assert state.fire(query, 1).all()


def test_selecting_sequences_carries_their_queries_along() -> None:
    queries = torch.eye(2)[:, None, :]
    state = Cosine(tau=0.5).start()
    state.fire(queries, 1)
    state.select_batch(torch.tensor([1, 1]))
    assert state.fire(queries, 1)[:, 0].tolist() == [True, False]


def test_a_tau_for_each_layer() -> None:
    cosine = Cosine(tau=(0.1, 0.2), per_head=True)
    assert cosine.at_layer(1) == Cosine(0.2, per_head=True)
    with pytest.raises(SettingsError, match="2 numbers"):
        cosine.at_layer(2)
    with pytest.raises(SettingsError, match="at_layer"):
        cosine.start()
    with pytest.raises(SettingsError, match=r"tau=1\.5"):
        Cosine(tau=(0.5, 1.5))
    anchored = AnchorCosine(tau=(0.1, 0.2), cap=3)
    assert anchored.at_layer(1) == AnchorCosine(0.2, cap=3)
    with pytest.raises(SettingsError, match="at_layer"):
        anchored.start()
    with pytest.raises(SettingsError, match=r"tau=-2"):
        AnchorCosine(tau=(0.5, -2))


def test_an_anchor_sees_a_slow_turn_and_the_query_before_does_not() -> None:
    anchored, cosine = AnchorCosine(tau=0.9).start(), Cosine(tau=0.9).start()
    turns = range(0, 100, 10)
    assert [bool(cosine.fire(at_angle(turn), 1)) for turn in turns] == [True, *[False] * 9]
    # The cosine of 20 degrees is 0.94, that of 30 degrees 0.87: each third step fires, and is the anchor from then on.
    assert [bool(anchored.fire(at_angle(turn), 1)) for turn in turns] == [turn % 30 == 0 for turn in turns]
    assert anchored.similarity is None


def test_each_kv_head_has_its_own_anchor() -> None:
    state = AnchorCosine(tau=0.9).start()
    state.fire(at_angle(0, 0, 0, 0), 2)
    # The mean over the group: one head alone may turn further than tau.
    assert state.fire(at_angle(0, 30, 0, 60), 2).tolist() == [[False, True]]
    assert state.fire(at_angle(0, 0, 0, 60), 2).tolist() == [[False, False]]
    assert state.fire(at_angle(0, 0, 0, 0), 2).tolist() == [[False, True]]


def test_no_selection_serves_longer_than_the_cap() -> None:
    state = AnchorCosine(tau=-1.0, cap=3).start()
    query = at_angle(0, 0)
    assert [bool(state.fire(query, 2)[0, 0]) for _ in range(7)] == [True, False, False, True, False, False, True]
    state.chosen(torch.tensor([[True, False]]))
    fired = [state.fire(query, 2)[0].tolist() for _ in range(3)]
    assert fired == [[False, False], [False, False], [True, True]], "both have served three steps since"
    assert AnchorCosine(cap=3).gap == 3 and AnchorCosine().gap is None


def test_an_anchor_can_be_chosen_from_outside_and_forgotten() -> None:
    state = AnchorCosine(tau=0.9).start()
    state.fire(at_angle(0), 1)
    state.fire(at_angle(20), 1)
    state.chosen(torch.tensor([[True]]))
    assert not state.fire(at_angle(40), 1), "20 degrees from what was chosen, 40 from what fired"
    state.reset()
    assert state.fire(at_angle(40), 1)


def test_anchors_follow_their_sequences() -> None:
    state = AnchorCosine(tau=0.9, cap=3).start()
    queries = torch.cat([at_angle(0), at_angle(90)])
    state.fire(queries, 1)
    state.select_batch(torch.tensor([1, 1, 0]))
    assert state.fire(queries[[0, 1, 0]], 1)[:, 0].tolist() == [True, False, False]
    assert state.fire(queries[[0, 1, 0]], 1)[:, 0].tolist() == [False, False, False]
    assert state.fire(queries[[0, 1, 0]], 1)[:, 0].tolist() == [False, True, True], "the cap was copied too"
