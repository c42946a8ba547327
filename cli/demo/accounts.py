"""What the demo has stored so far: the outcomes of the raw manifest, and the predictions."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from ciml.cli.demo.plan import Expected, Key
from ciml.events.records import Origin, Outcome, records_of
from ciml.manifest.coverage import RangeSet
from ciml.manifest.log import ManifestLog
from ciml.storage import Store


@dataclass(slots=True)
class Accounts:
    """Outcomes of the raw manifest up to ``version``.

    Attributes:
      version: the last delta that was read.
      by_key: outcomes that no later delta closed. At the end, a correct key has exactly one.
      waited: keys that were deferred at some time.
      covered: settled offsets by (topic, partition).
    """

    version: int = 0
    by_key: dict[Key, list[Outcome]] = field(default_factory=lambda: defaultdict(list))
    waited: set[Key] = field(default_factory=set)
    covered: dict[tuple[str, int], RangeSet] = field(default_factory=lambda: defaultdict(RangeSet))

    def catch_up(self, raw: Store) -> None:
        """Read new deltas."""
        for version, delta in ManifestLog(raw).since(self.version):
            self.apply(delta)
            self.version = version

    def apply(self, delta: Mapping[str, Any]) -> None:
        """Count the offsets and outcomes of a delta."""
        for topic, entry in delta["offsets"].items():
            for partition, ranges in entry["partitions"].items():
                for start, end in ranges:
                    self.covered[topic, int(partition)].add(start, end)
        for origin, run_id in delta["closes"]:
            self.by_key.pop(_key(Origin.from_json(origin), run_id), None)
        for _, record in records_of(delta):
            outcome = Outcome.from_json(record)
            key = _key(outcome.origin, outcome.run_id)
            if outcome.kind == "deferred":
                self.waited.add(key)
                self.by_key[key] = [earlier for earlier in self.by_key[key] if earlier.kind != "deferred"]
            self.by_key[key].append(outcome)

    def outcomes(self, kind: str = "") -> list[Outcome]:
        """Return the outcomes of a kind, or all, by key: in the order in which the keys first came."""
        return [outcome for outcomes in self.by_key.values() for outcome in outcomes if kind in ("", outcome.kind)]

    def unsettled(self, produced: Iterable[Expected]) -> int:
        """Return the number of acknowledged messages that are not covered yet."""
        messages = {(line.topic, line.partition, line.offset) for line in produced}
        return sum(offset not in self.covered[topic, partition] for topic, partition, offset in messages)


def _key(origin: Origin, run_id: str) -> Key:
    return origin.topic, origin.partition, origin.offset, run_id


@dataclass(slots=True)
class Predictions:
    """The predictions of a data root up to ``version``.

    Attributes:
      store: of the predictions.
      version: the last delta that was read.
      records: the predictions.
      run_ids: runs that were predicted, or found unpredictable.
    """

    store: Store
    version: int = 0
    records: list[dict[str, Any]] = field(default_factory=list)
    run_ids: set[str] = field(default_factory=set)

    def catch_up(self) -> None:
        """Read new deltas."""
        for version, delta in ManifestLog(self.store).since(self.version):
            self.records += delta["predictions"]
            self.run_ids.update(record["run_id"] for record in (*delta["predictions"], *delta["unpredictable"]))
            self.version = version
