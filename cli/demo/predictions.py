"""The predictions of the demo: their manifest against the topics."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from ciml.cli.demo.accounts import made_check
from ciml.cli.demo.report.result import Check, PredictionLine
from ciml.manifest.log import ManifestLog
from ciml.storage import Store


class Predictions:
    """The predictions of a data root, as far as they were read."""

    def __init__(self, predictions: Store) -> None:
        self._log = ManifestLog(predictions)
        self._version = 0
        self.records: list[dict[str, Any]] = []
        self.unpredictable: list[dict[str, Any]] = []

    def catch_up(self) -> None:
        """Read new deltas."""
        for version, delta in self._log.since(self._version):
            self.records += delta["predictions"]
            self.unpredictable += delta["unpredictable"]
            self._version = version

    def run_ids(self) -> set[str]:
        return {one["run_id"] for one in [*self.records, *self.unpredictable]}


def prediction_lines(
    records: Iterable[Mapping[str, Any]], untrusted: set[str], since_us: int = 0
) -> list[PredictionLine]:
    """Return count and latency by model.

    Args:
      records: of the manifest.
      untrusted: run ids.
      since_us: time of the first push. Runs announced earlier waited for a model, so their latency is left out, unless
        there are no others.
    """
    by_model: dict[str, list[Mapping[str, Any]]] = {}
    for one in records:
        by_model.setdefault(one["model"], []).append(one)
    lines = []
    for model, mine in sorted(by_model.items()):
        later = [one for one in mine if one["time_us"] - one["latency_ms"] * 1000 >= since_us] or mine
        latencies = sorted(one["latency_ms"] for one in later)
        versions = Counter(one["version"] for one in mine)
        lines.append(
            PredictionLine(
                model=model,
                by_version={str(number): count for number, count in sorted(versions.items())},
                untrusted=sum(one["run_id"] in untrusted for one in mine),
                p50_ms=quantile(latencies, 0.5),
                p99_ms=quantile(latencies, 0.99),
                latencies_ms=latencies,
            )
        )
    return lines


def quantile(values: Iterable[float], share: float) -> float:
    """Return the smallest value that at least ``share`` of the values do not exceed."""
    ordered = sorted(values)
    return ordered[max(0, -int(-len(ordered) * share // 1) - 1)]


def check_predictions(runs: Mapping[str, bool], records: Iterable[Mapping[str, Any]], versions: Iterable[int]) -> Check:
    """Check that each raw row, trusted or not, is predicted exactly once by a pushed version.

    Args:
      runs: run id of each raw row -> whether it is trusted.
      records: the predictions of one model.
      versions: those of the model that were pushed.
    """
    found = Counter(one["run_id"] for one in records)
    pushed = set(versions)
    wrong = [f"{run_id} is predicted {found[run_id]} times" for run_id in runs if found[run_id] != 1]
    wrong += [f"{run_id} is predicted, and has no raw row" for run_id in found if run_id not in runs]
    wrong += [f"{one['run_id']} by version {one['version']}" for one in records if one["version"] not in pushed]
    untrusted = sum(not trusted for trusted in runs.values())
    return made_check("each raw row is predicted once, the untrusted too", wrong, f"{len(runs)}, {untrusted} untrusted")


def check_topic(name: str, found: Iterable[str], wanted: Iterable[str]) -> Check:
    """Check that a topic holds each record of a manifest exactly once."""
    counted = Counter(found)
    expected = Counter(wanted)
    wrong = [
        f"{key}: {counted[key]} times, not {expected[key]}"
        for key in {**expected, **counted}
        if counted[key] != expected[key]
    ]
    return made_check(f"the topic {name} has each record once", wrong, f"{sum(expected.values())} messages")
