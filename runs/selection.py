"""The selection of stored runs by their facts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ciml.events.records import RunFacts
from ciml.events.run_id import source_of
from ciml.globs import matches_any
from ciml.runs.latest_runs import StoredRun


@dataclass(frozen=True)
class RunSelection:
    """Criteria of stored runs; a run must meet all of them. By default every run does.

    Attributes:
      jobs: globs of the jobs.
      outcomes: the outcomes, with corrections.
      sources: names of the sources.
      since_us, until_us: bounds of the time of the run, see `ran_within`.
      trusted: the last stored decision on the run's trust.
    """

    jobs: Sequence[str] = ()
    outcomes: Sequence[str] = ()
    sources: Sequence[str] = ()
    since_us: int | None = None
    until_us: int | None = None
    trusted: bool | None = None

    def matches(self, run: StoredRun) -> bool:
        """Return whether a run meets all criteria."""
        return (
            (self.trusted is None or run.trust.trusted is self.trusted)
            and (not self.outcomes or run.outcome in self.outcomes)
            and (not self.jobs or matches_any(self.jobs, run.facts.build_name))
            and (not self.sources or source_name(run.facts) in self.sources)
            and ran_within(run.facts, self.since_us, self.until_us)
        )


def source_name(facts: RunFacts) -> str:
    """Return the name of a run's source: as its event names it, else from its run id."""
    return facts.source or source_of(facts.run_id)


def ran_within(facts: RunFacts, since_us: int | None, until_us: int | None) -> bool:
    """Return whether a run ran at some time in [since, until), epoch microseconds. None is no bound.

    A single time of a run stands for both its start and its end. A run without times is within no bound.
    """
    if since_us is None and until_us is None:
        return True
    start_us = facts.end_us if facts.start_us is None else facts.start_us
    end_us = facts.start_us if facts.end_us is None else facts.end_us
    if start_us is None or end_us is None:
        return False
    return (since_us is None or end_us >= since_us) and (until_us is None or start_us < until_us)
