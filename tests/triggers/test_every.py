"""At fixed steps."""

import pytest
import torch

from louiskv import SettingsError
from louiskv.triggers import Every


@pytest.mark.parametrize("steps", [1, 2, 5])
def test_fires_first_and_at_every_stride(steps: int) -> None:
    state = Every(steps).start()
    fired = [state.fire(torch.zeros(2, 4, 8), 2) for _ in range(11)]
    assert all(each.tolist() in ([[True] * 2] * 2, [[False] * 2] * 2) for each in fired)
    assert [bool(each.all()) for each in fired] == [step % steps == 0 for step in range(11)]


def test_what_others_choose_and_which_sequences_there_are_does_not_move_the_stride() -> None:
    state = Every(3).start()
    state.fire(torch.zeros(2, 4, 8), 2)
    state.chosen(torch.ones(2, 2, dtype=torch.bool))
    state.select_batch(torch.tensor([1]))
    assert [bool(state.fire(torch.zeros(1, 4, 8), 2).any()) for _ in range(3)] == [False, False, True]


def test_forgetting_begins_a_stride() -> None:
    state = Every(3).start()
    state.fire(torch.zeros(1, 4, 8), 2)
    state.reset()
    assert state.fire(torch.zeros(1, 4, 8), 2).all()


def test_settings() -> None:
    assert Every(3).gap == 3 and not Every(3).late
    assert Every(3).at_layer(7) == Every(3)
    with pytest.raises(SettingsError, match="steps=0 .* at least 1"):
        Every(0)
