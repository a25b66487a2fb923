"""What each sequence is compared with."""

import pytest
import torch

from louiskv.triggers.taus import Taus


def test_each_sequence_has_the_number_that_it_came_with() -> None:
    own, other = Taus(0.5), Taus(0.9)
    assert own.of(torch.zeros(2, 3)).tolist() == [0.5, 0.5]
    held = own.of(torch.zeros(2, 3))
    own.put(1, other, 0, 2)
    assert held.tolist() == [0.5, 0.5], "what is there is changed by nobody else"
    assert own.of(torch.zeros(2, 3)).tolist() == pytest.approx([0.5, 0.9])
    third = Taus(0.1)
    # Before there was any step, too.
    third.put(0, own, 1, 3)
    third.put(2, own, 0, 3)
    assert third.of(torch.zeros(3)).tolist() == pytest.approx([0.9, 0.1, 0.5])
    third.put(0, None, 0, 3)
    third.select_batch(torch.tensor([2, 2, 1, 0]))
    assert third.of(torch.zeros(4)).tolist() == pytest.approx([0.5, 0.5, 0.1, 0.1])


def test_a_trigger_alone_has_its_own_for_any_batch() -> None:
    own = Taus(0.5)
    own.select_batch(torch.tensor([0, 0, 0]))
    for size in (1, 3, 2):
        assert own.of(torch.zeros(size)).tolist() == [0.5] * size
