"""What torchrun says."""

import pytest

from louiskv.ranks import Ranks


@pytest.mark.parametrize("missing", ["RANK", "WORLD_SIZE", "LOCAL_RANK", None])
def test_only_all_that_torchrun_sets_makes_ranks(missing: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("RANK", "3"), ("WORLD_SIZE", "4"), ("LOCAL_RANK", "1")):
        monkeypatch.setenv(name, value)
    if missing is None:
        assert Ranks.of_environment() == Ranks(rank=3, num_ranks=4, local_rank=1)
    else:
        monkeypatch.delenv(missing)
        assert Ranks.of_environment() == Ranks(rank=0, num_ranks=1, local_rank=0)
