"""When a retrieval is made."""

import pytest
import torch

from louiskv import SettingsError
from louiskv.triggers import Cosine, Every, Late


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


def test_every_step() -> None:
    state = Every().start()
    for _ in range(3):
        assert state.fire(torch.zeros(2, 4, 8), 2).tolist() == [[True, True]] * 2


def test_a_tau_for_each_layer() -> None:
    cosine = Cosine(tau=(0.1, 0.2), per_head=True)
    assert cosine.at_layer(1) == Cosine(0.2, per_head=True)
    assert Late(cosine).at_layer(0) == Late(Cosine(0.1, per_head=True))
    assert Every(3).at_layer(7) == Every(3)
    with pytest.raises(SettingsError, match="2 numbers"):
        cosine.at_layer(2)
    with pytest.raises(SettingsError, match="at_layer"):
        cosine.start()
    with pytest.raises(SettingsError, match=r"tau=1\.5"):
        Cosine(tau=(0.5, 1.5))
