"""The Prometheus metrics of a raw manifest."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from ciml.metrics import Family, Metric
from ciml.runs.state import RawState

EVENTS = Metric("ciml_events_total", "counter", "Settled (event, run), by source and outcome.", ("source", "outcome"))
RUNS = Metric("ciml_runs_total", "counter", "Raw rows, by the trust rule of their ingestion.", ("trusted", "rule"))
TRUST_CHANGES = Metric(
    "ciml_trust_changes_total", "counter", "Changes of trust by later updates, by the new rule.", ("trusted", "rule")
)
IGNORED = Metric("ciml_ignored_total", "counter", "Ignored (event, run), by reason.", ("reason",))
DEAD_LETTERS = Metric("ciml_dead_letter_total", "counter", "Dead letters ever recorded, by reason.", ("reason",))
OPEN_DEAD_LETTERS = Metric("ciml_dead_letters_open", "gauge", "Dead letters that no replay has closed.", ("reason",))
DEFERRED = Metric("ciml_deferred_logs", "gauge", "Runs whose log was unavailable and is tried again.", ("reason",))
NEXT_TRY = Metric(
    "ciml_deferred_next_try_timestamp_seconds", "gauge", "Time of the next try of a deferred log, epoch seconds."
)
VERSION = Metric("ciml_manifest_version", "gauge", "The last delta of a manifest.", ("manifest",))
COMMITTED = Metric(
    "ciml_manifest_commit_timestamp_seconds",
    "gauge",
    "Commit time of the last delta, epoch seconds.",
    ("manifest",),
)
SINCE_CHECKPOINT = Metric(
    "ciml_manifest_deltas_since_checkpoint", "gauge", "Deltas after the newest checkpoint.", ("manifest",)
)

METRICS = tuple(value for value in list(globals().values()) if isinstance(value, Metric))


def raw_families(state: RawState) -> Iterator[Family]:
    """Yield the metrics of a state.

    Labels come from closed sets, except ``source``, which has at most 52 values.
    """
    by_kind: dict[str, Counter[tuple[str, ...]]] = {
        "dead_letter": Counter(),
        "deferred": Counter(),
        "ignored": Counter(),
    }
    for (kind, reason), number in state.counts.items():
        if kind in by_kind:
            by_kind[kind][reason,] += number
    dead_letters = Counter({(reason,): number for reason, number in state.closed.items()})
    yield EVENTS.of(state.recorded)
    for metric, counts in ((RUNS, state.trust), (TRUST_CHANGES, state.trust_changes)):
        yield metric.of({(str(trusted).lower(), rule): number for (trusted, rule), number in counts.items()})
    yield IGNORED.of(by_kind["ignored"])
    yield DEAD_LETTERS.of(dead_letters + by_kind["dead_letter"])
    yield OPEN_DEAD_LETTERS.of({**dict.fromkeys(dead_letters, 0), **by_kind["dead_letter"]})
    yield DEFERRED.of(by_kind["deferred"])
    due_us = state.next_due_us()
    yield NEXT_TRY.alone(None if due_us is None else due_us / 1e6)
    yield from manifest_families("raw", state.version, state.time_us, state.restored)


def manifest_families(manifest: str, version: int, time_us: int, restored: int) -> Iterator[Family]:
    """Yield the metrics of any manifest with checkpoints."""
    yield VERSION.of({(manifest,): version})
    yield COMMITTED.of({(manifest,): time_us / 1e6} if time_us else {})
    yield SINCE_CHECKPOINT.of({(manifest,): version - restored})
