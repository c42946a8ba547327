"""What tests of metrics share: a scrape as Prometheus does it, and samples by their labels."""

from __future__ import annotations

from typing import Any
from urllib.request import urlopen

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

#: Values by (labels' values in the order of their names) by sample name.
Samples = dict[str, dict[tuple[str, ...], float]]


def scrape(url: str) -> Samples:
    """What a service shows."""
    with urlopen(url, timeout=10) as answer:
        return parsed(answer.read().decode())


def collected(collector: Any) -> Samples:
    """What a collector of this process would be scraped for."""
    registry = CollectorRegistry()
    registry.register(collector)
    return parsed(generate_latest(registry).decode())


def parsed(text: str) -> Samples:
    """The samples of a text; each series is there once."""
    found: Samples = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            labels = tuple(value for _, value in sorted(sample.labels.items()))
            assert labels not in found.setdefault(sample.name, {}), sample
            found[sample.name][labels] = sample.value
    return found
