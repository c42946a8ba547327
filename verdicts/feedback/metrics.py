"""Metrics of feedback: totals of its manifest, and the time of calls in this process."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator

from ciml.metrics import Family, metric
from ciml.runs.metrics import manifest_families
from ciml.verdicts.feedback.state import REACTIONS as KINDS
from ciml.verdicts.feedback.state import SECONDS, FeedbackState

VERDICTS = metric("ciml_feedback_verdicts_total")
MESSAGES = metric("ciml_feedback_messages_total")
SETTLED = metric("ciml_feedback_recorded_verdicts")
WAITING = metric("ciml_feedback_waiting")
UNSETTLED = metric("ciml_feedback_unsettled")
OLDEST = metric("ciml_feedback_oldest_timestamp_seconds")
PAUSED = metric("ciml_feedback_paused_until_timestamp_seconds")
REACTIONS = metric("ciml_feedback_reactions_total")
DELAY = metric("ciml_feedback_seconds", SECONDS)
CALLS = metric("ciml_feedback_call_seconds")


def feedback_families(state: FeedbackState, systems: Iterable[str]) -> Iterator[Family]:
    """Yield the metric families of a state. Systems are those of the configuration, and those the manifest knows.

    Reactions begin at 0: Prometheus does not count the first value of a new series as an increase.
    """
    systems = tuple(systems)
    reacted = {(system, kind): 0 for system in systems for kind in KINDS}
    waiting: Counter[tuple[str]] = Counter({(system,): 0 for system in systems})
    unsettled = Counter(waiting)
    oldest = dict[tuple[str], float]()
    for key in state.opened:
        entry = state.entries[key]
        waiting[entry.system,] += 1
        unsettled[entry.system,] += entry.intent is not None
        oldest[entry.system,] = min(oldest.get((entry.system,), float("inf")), entry.since_us / 1e6)
    yield VERDICTS.of({(outcome,): number for outcome, number in state.verdicts.items()})
    yield SETTLED.of(_recorded(state))
    yield MESSAGES.of(state.messages)
    yield WAITING.of(waiting)
    yield UNSETTLED.of(unsettled)
    yield OLDEST.of(oldest)
    yield PAUSED.of({(system,): until_us / 1e6 for system, until_us in state.paused.items()})
    yield REACTIONS.of(reacted | state.reacted)
    yield DELAY.distribution(
        {
            (system,): ([state.seconds[system, bucket] for bucket in range(len(SECONDS) + 1)], total_us / 1e6)
            for system, total_us in state.seconds_us.items()
        }
    )
    yield from manifest_families("feedback", state.version, state.time_us, state.restored)


def _recorded(state: FeedbackState) -> Counter[tuple[str, str, str]]:
    """Return the number of claims by model, cause, and whether they were right, wrong, or are still open."""
    counts = Counter[tuple[str, str, str]]()
    for verdict in state.history:
        if verdict.claim:
            held = "right" if verdict.settled == verdict.cause else "wrong"
            counts[verdict.model, verdict.cause, held if verdict.settled else "open"] += 1
    return counts
