"""ClusterKV against a slow oracle of its paper, what it keeps, and its settings."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from louiskv import ClusterKV, SettingsError
from tests.methods.oracle import (
    ITEM_SIZE,
    NUM_KV_HEADS,
    SCALING,
    Oracle,
    Sequence,
    Vector,
    agree_step_by_step,
    best,
    decode,
    dot,
    drifting,
    mean_share,
    started,
)
from tests.ops.test_kmeans_cosine import cosine_kmeans_by_loops


class ClusterKVOracle(Oracle):
    """Sinks, output that is not clustered yet, and the clusters whose mean key fits the query, the last one cut."""

    def __init__(self, method: ClusterKV, sequence: Sequence) -> None:
        super().__init__(sequence)
        self.method, self.sequence = method, sequence
        self.clusters: list[list[list[int]]] = [[] for _ in self.keys]
        self.unclustered = self.length
        prompt = list(range(min(method.sink, self.length), self.length))
        for head in range(NUM_KV_HEADS):
            self.offloaded += len(prompt)
            for first in range(0, len(prompt), method.chunk_size):
                self.cluster(head, prompt[first : first + method.chunk_size])

    def cluster(self, head: int, positions: list[int]) -> list[int]:
        method = self.method
        num_clusters = max(1, len(positions) // method.unit_size)
        grouped = cosine_kmeans_by_loops(self.sequence.keys[head, positions], num_clusters, method.iterations)
        clusters = [[positions[token] for token in tokens] for tokens in grouped if tokens]
        self.clusters[head] += clusters
        return [place for cluster in clusters for place in cluster]

    def step(self, position: int, query: list[list[Vector]]) -> list[set[int]]:
        method = self.method
        self.unclustered = max(self.unclustered, min(method.sink, position))
        if position - self.unclustered == method.output_size:
            for head in range(NUM_KV_HEADS):
                leaving = self.cluster(head, list(range(self.unclustered, position)))
                self.stay(head, leaving, method.budget - method.sink - 1)
            self.unclustered = position
        newest = range(self.unclustered, position + 1)
        attended = []
        for head, group in enumerate(query):
            left = method.budget - method.sink - sum(place >= method.sink for place in newest)
            wanted: set[int] = set()
            for cluster in self.ranked(head, group):
                wanted |= set(cluster[:left])
                left -= min(left, len(cluster))
            self.retrieve(head, wanted)
            attended.append(self.retrieved[head] | {*range(min(method.sink, position + 1)), *newest})
        return attended

    def ranked(self, head: int, group: list[Vector]) -> list[list[int]]:
        clusters, keys = self.clusters[head], self.keys[head]
        means = [
            [sum(channel) / len(cluster) for channel in zip(*(keys[place] for place in cluster), strict=True)]
            for cluster in clusters
        ]
        scores = mean_share([[SCALING * dot(each, mean) for mean in means] for each in group])
        return [clusters[unit] for unit in best(scores)]


@settings(deadline=None, max_examples=12, derandomize=True)
@given(
    length=st.integers(1, 80),
    steps=st.integers(24, 48),
    sink=st.integers(0, 4),
    unit_size=st.sampled_from([1, 3, 5]),
    clusters_at_once=st.integers(1, 4),
    retrieved=st.integers(1, 20),
    chunk_size=st.sampled_from([24, 1000]),
    group_size=st.sampled_from([2, 3]),
    seed=st.integers(0, 999),
)
def test_agrees_with_the_oracle_step_by_step(
    length: int,
    steps: int,
    sink: int,
    unit_size: int,
    clusters_at_once: int,
    retrieved: int,
    chunk_size: int,
    group_size: int,
    seed: int,
) -> None:
    method = ClusterKV(
        budget=sink + clusters_at_once * unit_size + retrieved,
        sink=sink,
        unit_size=unit_size,
        output_size=clusters_at_once * unit_size,
        iterations=4,
        chunk_size=chunk_size,
        dense_layers=0,
    )
    sequence = drifting(length, steps, group_size, seed)
    agree_step_by_step(method, sequence, ClusterKVOracle(method, sequence))


def test_output_is_clustered_a_few_hundred_tokens_at_a_time() -> None:
    method = ClusterKV(budget=400, dense_layers=0, iterations=2)
    sequence = drifting(176, 650, 2, seed=0)
    layer = started(method, sequence)
    assert layer.index.counts.tolist() == [2] * NUM_KV_HEADS, "160 tokens behind the sinks"
    in_clusters = []
    for step in range(650):
        decode(layer, sequence, step)
        in_clusters.append(int(layer.index.sizes[0].sum()))
    # The window of 320 tokens is full with step 319, and the next token pushes it out.
    assert sorted(set(in_clusters)) == [160, 480, 800]
    assert (in_clusters.index(480), in_clusters.index(800)) == (320, 640)
    assert int(layer.index.counts.max()) <= 2 + 4 + 4


def test_everything_is_offloaded_once_and_the_index_is_a_key_a_cluster() -> None:
    method = ClusterKV(budget=512, unit_size=16, iterations=2, chunk_size=2048, dense_layers=0)
    sequence = drifting(40_000, 330, 2, seed=0)
    layer = started(method, sequence)
    for step in range(330):
        decode(layer, sequence, step)
    num_tokens = sequence.length + 320
    per_token = 8 * ITEM_SIZE / 16
    assert layer.index.summary_bytes == pytest.approx(num_tokens * NUM_KV_HEADS * per_token, rel=0.05)
    assert layer.traffic.offloaded_bytes == (num_tokens - 16) * NUM_KV_HEADS * sequence.token_size


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"budget": 336}, r"budget=336 leaves no room .* at least 337,"),
        ({"output_size": 100}, "output_size=100 is not a multiple of unit_size=80: give 80 or 160"),
        ({"output_size": 0}, "output_size=0 .* at least 1"),
        ({"unit_size": 0}, "unit_size=0 .* at least 1"),
        ({"iterations": 0}, "iterations=0 .* at least 1"),
        ({"chunk_size": 79}, "chunk_size=79 .* at least 80"),
        ({"sink": -1}, "sink=-1 .* at least 0"),
    ],
)
def test_wrong_settings_say_what_is_allowed(wrong: dict[str, object], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        ClusterKV(**wrong)  # type: ignore[arg-type]
