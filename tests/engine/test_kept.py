"""Conversations that may go on: which one a prompt goes on from, and which is let go."""

from typing import Any, cast

from hypothesis import given
from hypothesis import strategies as st

from louiskv.cache import LouisKVCache
from louiskv.engine import Conversation
from louiskv.engine.kept import Kept, common_prefix, usable


class Sized:
    """Stands for a cache of so many bytes."""

    def __init__(self, size: int, crops: bool = True) -> None:
        self.managed = [self]
        self.state = self.host = self
        self.resident = self.index = type("Nothing", (), {"bytes": 0})
        self.bytes, self.crops_exactly = size, crops

    def tiers(self) -> "Sized":
        return self


def conversation(token_ids: list[int], size: int = 10, crops: bool = True) -> Conversation:
    return Conversation(tuple(token_ids), cast(LouisKVCache, cast(Any, Sized(size, crops))))


@given(st.lists(st.integers(0, 1), max_size=40), st.lists(st.integers(0, 1), max_size=40), st.integers(0, 40))
def test_the_common_prefix(first: list[int], second: list[int], same: int) -> None:
    second = [*first[:same], *second]
    expected = next(
        (place for place, (one, other) in enumerate(zip(first, second, strict=False)) if one != other),
        min(len(first), len(second)),
    )
    assert common_prefix(first, second) == expected


def test_how_much_of_a_conversation_is_of_use() -> None:
    held = conversation([1, 2, 3, 4])
    assert usable(held, [1, 2, 3, 4, 5, 6]) == 4
    assert usable(held, [1, 2, 9, 9]) == 2
    assert usable(held, [1, 2, 3, 4, 5]) == 3, "a single token would be taken for an output"
    assert usable(held, [1, 2, 3, 4]) == 2
    assert usable(held, [7, 8]) == usable(held, [1]) == 0
    dropping = conversation([1, 2, 3, 4], crops=False)
    assert usable(dropping, [1, 2, 3, 4, 5]) == 4
    assert usable(dropping, [1, 2, 3, 9, 9]) == usable(dropping, [1, 2, 3, 4]) == 0


def test_those_unused_for_longest_go() -> None:
    kept = Kept(25)
    first, second, third = (conversation([number] * 4) for number in (1, 2, 3))
    for each in (first, second):
        kept.keep(each)
    assert kept.take([1] * 6) is first
    kept.keep(first)
    kept.keep(third)
    assert len(kept) == 2
    assert kept.find([2] * 6) is None
    assert kept.find([1] * 6) is first
    assert kept.sizes() == (20, 0)
    assert kept.drop_oldest(but=first)
    assert not kept.drop_oldest(but=first)
    assert kept.drop_oldest()
    assert len(kept) == 0
    kept.keep(conversation([1], size=30))
    assert len(kept) == 0
    assert kept.sizes() == (0, 0)


def test_the_one_that_saves_most_is_gone_on_from() -> None:
    kept = Kept(100)
    short, long, others = conversation([1, 2, 3]), conversation([1, 2, 3, 4, 5]), conversation([1, 2, *[9] * 20])
    for each in (short, long, others):
        kept.keep(each)
    assert kept.take([1, 2, 3, 4, 5, 6, 7]) is long
    assert kept.take([1, 2, 3, 4, 5, 6, 7]) is short
    assert kept.take([1, 2, 3, 4, 5, 6, 7]) is None, "what is mostly of somebody else stays"
