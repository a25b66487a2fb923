"""The figures of several ranks as one report."""

import pytest

from louiskv.counters import PHASES
from louiskv.joint_report import joint_report
from louiskv.telemetry import LayerReport, Report, Tier, Tiers


def report(rank: int) -> Report:
    """What a rank might say of its only layer."""
    tier = Tier(tokens=10 + rank, bytes=100)
    layer = LayerReport(
        layer=0,
        kind="RetrievalLayer",
        tiers=Tiers(resident=tier, index=tier, host=tier, seen=tier),
        steps=5,
        retrieval_rate=0.25 * (rank + 1),
        ahead_rate=None,
        selected_tokens=100 * (rank + 1),
        hit_rate=0.5 + 0.3 * rank,
        fetched_bytes=7,
        offloaded_bytes=3 + rank,
        similarity={"mean": 0.5, "min": 0.1 * (rank + 1), "median": 0.4 + 0.2 * rank},
        segment_sizes={4: 1, 8 + rank: 2},
        coding_error=None,
        seconds=dict.fromkeys(PHASES, 1.0 + rank),
    )
    return Report(method="LouisKV", settings={}, prompt_tokens=9, output_tokens=5, unmanaged_bytes=2, layers=[layer])


def test_the_report_of_one_rank_is_its_own() -> None:
    alone = report(0)
    assert joint_report([alone]) is alone
    assert "ranks" not in str(alone)


def test_what_ranks_hold_is_summed_and_what_they_share_is_not() -> None:
    joint = joint_report([report(0), report(1)])
    assert (joint.prompt_tokens, joint.output_tokens, joint.unmanaged_bytes, joint.ranks) == (9, 5, 4, 2)
    assert (joint.device_bytes, joint.host_bytes, joint.full_bytes) == (400, 200, 200)
    (layer,) = joint.layers
    assert layer.tiers.resident == Tier(21, 200)
    assert (layer.steps, layer.fetched_bytes, layer.offloaded_bytes) == (5, 14, 7)
    assert layer.segment_sizes == {4: 2, 8: 2, 9: 2}
    assert "ranks       2, summed" in str(joint)


def test_rates_are_over_the_heads_of_all_and_seconds_the_slowest() -> None:
    (layer,) = joint_report([report(0), report(1)]).layers
    assert layer.retrieval_rate == pytest.approx(0.375)
    assert layer.selected_tokens == 300
    assert layer.hit_rate == pytest.approx((100 * 0.5 + 200 * 0.8) / 300)
    assert layer.similarity == pytest.approx({"mean": 0.5, "min": 0.1, "median": 0.5})
    assert layer.ahead_rate is None
    assert layer.coding_error is None
    assert set(layer.seconds.values()) == {2.0}
