"""What several replicas tell of themselves, as one."""

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import Metric
from prometheus_client.parser import text_string_to_metric_families


def summed(told: Mapping[str, bytes]) -> dict[str, Any]:
    """What /louiskv/v1/figures answers for all replicas: counts and bytes are sums, the rate is that of all tokens.

    Args:
        told: What each one answers, by its name.
    """
    each = {name: json.loads(body) for name, body in told.items()}
    figures = {name: one["figures"] for name, one in each.items()}
    total = {field: sum(one[field] for one in figures.values()) for field in next(iter(figures.values()))}
    tokens = total["output_tokens"]
    weighed = sum(one["retrieval_rate"] * one["output_tokens"] for one in figures.values())
    total["retrieval_rate"] = weighed / tokens if tokens else 0.0
    return {**next(iter(each.values())), "figures": total, "replicas": figures}


def labelled(told: Mapping[str, bytes]) -> bytes:
    """The metrics of all replicas as Prometheus reads them, each with the label `replica`.

    Args:
        told: What /metrics of each one answers, by its name.
    """
    families: dict[str, Metric] = {}
    for name, text in told.items():
        for family in text_string_to_metric_families(text.decode()):
            known = families.setdefault(family.name, Metric(family.name, family.documentation, family.type))
            known.samples += [sample._replace(labels={**sample.labels, "replica": name}) for sample in family.samples]
    registry = CollectorRegistry()
    registry.register(_Told(list(families.values())))
    return generate_latest(registry)


class _Told:
    """Metrics that were collected before."""

    def __init__(self, metrics: Sequence[Metric]) -> None:
        self._metrics = metrics

    def collect(self) -> Iterable[Metric]:
        """All of them."""
        return self._metrics
