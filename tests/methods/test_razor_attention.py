"""RazorAttention against a slow oracle of its paper, where it finds its heads, and its settings."""

import math
from fractions import Fraction
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from louiskv import NotCalibratedError, RazorAttention, SettingsError, attach
from louiskv.heads import HeadScores
from louiskv.measured import ModelIdentity
from louiskv.methods.base import LayerShape
from louiskv.methods.eviction_layer import EvictionLayer
from louiskv.methods.full import FullLayer
from louiskv.methods.split import SplitLayer
from tests.families import greedy, prompt, tiny
from tests.methods.eviction_oracle import TOLERANCE, EvictionOracle, Token, mean, random_talk, walk
from tests.methods.oracle import NUM_KV_HEADS, Vector


@pytest.fixture(autouse=True)
def cache_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Scores are saved and looked for here."""
    monkeypatch.setenv("LOUISKV_CACHE", str(tmp_path))


class FullOracle(EvictionOracle):
    """A retrieval head."""

    def __init__(self) -> None:
        super().__init__(budget=10**9, window=1)

    def score(self, token: Token) -> float:
        raise AssertionError("none goes")


class OtherOracle(EvictionOracle):
    """Any other: sinks, the newest tokens, and one that stands for the dropped ones."""

    def __init__(self, method: RazorAttention) -> None:
        super().__init__(method.sink + method.window, window=1)
        self.sink, self.least, self.share = method.sink, method.window, Fraction(str(method.share))
        self.gone: list[Token] = []

    def score(self, token: Token) -> float:
        return token.position

    def take_in(self, new: list[Token]) -> None:
        """The share is of all tokens so far."""
        super().take_in(new)
        self.budget = self.sink + max(self.least, math.ceil(self.share * self.length))

    def drop(self, lost: list[Token]) -> None:
        super().drop(lost)
        self.gone += lost

    def attend(self, group: list[Vector], tokens: list[Token], time: int | None) -> list[Vector]:
        return super().attend(group, [*tokens, *self.compensation()], time)

    def compensation(self) -> list[Token]:
        if not self.gone:
            return []
        key, value = (
            [mean(list(channel)) for channel in zip(*rows, strict=True)]
            for rows in ([token.key for token in self.gone], [token.value for token in self.gone])
        )
        return [Token(-1, key, value, votes=len(self.gone))]


@settings(deadline=None, max_examples=24, derandomize=True)
@given(
    length=st.integers(1, 60),
    steps=st.integers(24, 60),
    retrieving=st.sampled_from([(), (0,), (1,), (0, 1)]),
    sink=st.integers(0, 4),
    window=st.integers(2, 12),
    share=st.sampled_from([0.0, 0.2, 0.3, 0.5]),
    second=st.integers(1, 20),
    group_size=st.sampled_from([1, 2, 3]),
    plain=st.booleans(),
    seed=st.integers(0, 999),
)
def test_agrees_with_the_oracle_step_by_step(
    length: int,
    steps: int,
    retrieving: tuple[int, ...],
    sink: int,
    window: int,
    share: float,
    second: int,
    group_size: int,
    plain: bool,
    seed: int,
) -> None:
    method = RazorAttention(sink=sink, window=window, share=share, kv_heads=(retrieving,))
    talk = random_talk([(length, steps), (second, 5)], group_size, seed, plain=plain)
    others = {head: OtherOracle(method) for head in range(NUM_KV_HEADS) if head not in retrieving}
    oracles: list[EvictionOracle] = [others.get(head) or FullOracle() for head in range(NUM_KV_HEADS)]
    layer = method.layer(0)
    for _ in walk(layer, talk, oracles):
        layer.check_integrity()
        assert layer.attended == max(len(oracle.tokens) for oracle in oracles)
        for part in layer.parts if isinstance(layer, SplitLayer) else (layer,):
            if isinstance(part, FullLayer):
                assert part.attended == oracles[0].length
                continue
            assert isinstance(part, EvictionLayer)
            for row, oracle in enumerate(others.values()):
                kept = part.kept
                held = kept.positions[row][kept.positions[row] >= 0].tolist()
                assert sorted(held) == [token.position for token in oracle.tokens]
                assert int(kept.num_rest[row]) == len(oracle.gone)
                for token in oracle.compensation():
                    torch.testing.assert_close(
                        kept.rows[row, -1], torch.tensor(token.key + token.value), atol=TOLERANCE, rtol=TOLERANCE
                    )
                    assert kept.votes[row, -1].exp() == pytest.approx(token.votes)


@pytest.mark.parametrize("share", [0.1, 0.2, 0.3, 0.7])
def test_a_share_of_a_prompt_is_rounded_up_and_no_further(share: float) -> None:
    method = RazorAttention(sink=0, window=2, share=share, kv_heads=((),))
    shape = LayerShape(num_kv_heads=NUM_KV_HEADS, key_dim=2, value_dim=2, item_size=4)
    for length in range(10, 400, 10):
        layer = method.layer(0)
        layer.batch_size, layer.num_kv_heads = 1, NUM_KV_HEADS
        rows = torch.randn(1, NUM_KV_HEADS, length, 2)
        layer.absorb(rows, rows, None)
        expected = max(2, math.ceil(Fraction(str(share)) * length))
        assert layer.attended == expected, f"of {length} tokens"
        assert method.footprint(0, shape, length).resident == (expected + 1) * shape.token_bytes


def test_a_retrieval_head_keeps_everything_and_the_others_do_not() -> None:
    method = RazorAttention(sink=2, window=8, share=0, kv_heads=((1,),))
    layer = method.layer(0)
    talk = random_talk([(50, 30)], 2, seed=0)
    for _ in walk(layer, talk, [OtherOracle(method), FullOracle()]):
        pass
    assert layer.tiers().resident.tokens == 80 + 10
    assert layer.traffic.fetched_bytes == 0


def named(kv_heads: tuple[tuple[int, ...], ...] | None, **options: object) -> RazorAttention:
    return RazorAttention(window=8, share=0.0, kv_heads=kv_heads, **options)  # type: ignore[arg-type]


def test_heads_that_a_model_does_not_have_are_named() -> None:
    talk = random_talk([(5, 0)], 1, seed=0)
    with pytest.raises(SettingsError, match="no KV head 2: this model has 2"):
        next(walk(named(((0, 2),)).layer(0), talk, [FullOracle(), FullOracle()]))
    with pytest.raises(SettingsError, match="kv_heads names 1 layers, but the model has more"):
        named(((0,),)).layer(1)


def test_without_scores_it_says_how_to_get_them() -> None:
    model = tiny("llama")
    with pytest.raises(NotCalibratedError, match=r"louiskv\.score_heads\(model\) once"), attach(model, named(None)):
        pass
    with pytest.raises(NotCalibratedError, match="attach it to a model"):
        named(None).layer(0)
    assert model.config._attn_implementation == "eager"


def scores_of(seed: int) -> HeadScores:
    echo, induction = torch.rand(2, 4, 2, generator=torch.Generator().manual_seed(seed)).tolist()
    return HeadScores(ModelIdentity.of(tiny("llama", seed=seed)), echo, induction, {})


def test_scores_are_found_for_their_model_or_where_it_is_said(tmp_path: Path) -> None:
    scores = scores_of(0)
    expected = scores.best(0.2, 0.3)
    named_path, found_path = scores.save(tmp_path / "named.json"), scores.save()
    assert named_path.read_text() == found_path.read_text()
    for heads in (str(named_path), ""):
        # Where the file lies decides nothing: the method is the same.
        assert named(None, heads=heads, echo=0.2, induction=0.3).for_model(tiny("llama")) == named(
            expected, echo=0.2, induction=0.3
        )
    with attach(tiny("llama"), named(None)) as kv_cache:
        assert greedy(tiny("llama"), prompt(30), 1).shape == (1, 31)
        assert len(kv_cache.managed) == 4


def test_heads_that_are_given_need_no_scores() -> None:
    method = named(((0,), (), (1,), ()))
    assert method.for_model(tiny("llama")) is method


def test_scores_of_another_model_are_refused(tmp_path: Path) -> None:
    path = scores_of(1).save(tmp_path / "named.json")
    model = tiny("llama")
    with pytest.raises(SettingsError, match=r"named\.json was measured on another model .*score_heads\(model\)"):
        named(None, heads=str(path)).for_model(model)
    scores_of(1).save()
    with pytest.raises(NotCalibratedError):
        named(None).for_model(model)


def test_a_file_that_is_missing_or_damaged_is_named(tmp_path: Path) -> None:
    path = tmp_path / "named.json"
    with pytest.raises(SettingsError, match=r"named\.json cannot be read: No such file"):
        named(None, heads=str(path)).for_model(tiny("llama"))
    path.write_text("{")
    with pytest.raises(SettingsError, match=r"named\.json holds no head scores"):
        named(None, heads=str(path)).for_model(tiny("llama"))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"echo": 1.5}, "echo=1.5 .* from 0 to 1"),
        ({"induction": -0.1}, "induction=-0.1 .* from 0 to 1"),
        ({"induction": "most"}, "induction='most' .* from 0 to 1"),
        ({"share": 2}, "share=2 .* from 0 to 1"),
        ({"window": 1}, "window=1 .* at least 2"),
        ({"window": 2.5}, "window=2.5 .* whole number"),
        ({"sink": -1}, "sink=-1 .* at least 0"),
        ({"sink": 2.5}, "sink=2.5 .* whole number"),
        ({"sink": "few"}, "sink='few' .* whole number"),
    ],
)
def test_wrong_settings_say_what_is_allowed(wrong: dict[str, object], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        RazorAttention(**wrong)  # type: ignore[arg-type]
