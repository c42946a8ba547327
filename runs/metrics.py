"""The Prometheus metrics of a raw manifest."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from ciml.metrics import Family, metric
from ciml.runs.state import RawState

EVENTS = metric("ciml_events_total")
RUNS = metric("ciml_runs_total")
TRUST_CHANGES = metric("ciml_trust_changes_total")
IGNORED = metric("ciml_ignored_total")
DEAD_LETTERS = metric("ciml_dead_letter_total")
OPEN_DEAD_LETTERS = metric("ciml_dead_letters_open")
DEFERRED = metric("ciml_deferred_logs")
NEXT_TRY = metric("ciml_deferred_next_try_timestamp_seconds")
VERSION = metric("ciml_manifest_version")
COMMITTED = metric("ciml_manifest_commit_timestamp_seconds")
SINCE_CHECKPOINT = metric("ciml_manifest_deltas_since_checkpoint")


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
    for family, counts in ((RUNS, state.trust), (TRUST_CHANGES, state.trust_changes)):
        yield family.of({(str(trusted).lower(), rule): number for (trusted, rule), number in counts.items()})
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
