"""The run that evidence is about: its telemetry, the profile to compare with, and how it ended."""

from __future__ import annotations

from dataclasses import dataclass

import pyarrow as pa

from ciml.events.records import RunFacts
from ciml.verdicts import exit_status_of
from transforms.profiles.profile import Profile


@dataclass(frozen=True, slots=True, eq=False)
class Subject:
    """A run.

    Attributes:
      table: its telemetry as stored, with at least one sample.
      profile: of the passing runs of its job.
      outcome: such as ``failure`` or ``timeout``; "" where it is not known.
      exit_status: of its job, by `ciml.verdicts.exit_status`; None where it is not known.
      end_us: when the CI system says that it ended, epoch microseconds; None where it is not known.
    """

    table: pa.Table
    profile: Profile
    outcome: str = ""
    exit_status: int | None = None
    end_us: int | None = None

    @classmethod
    def of(cls, facts: RunFacts, table: pa.Table, profile: Profile) -> Subject:
        """Return the subject of a run with these facts."""
        return cls(table, profile, facts.outcome or "", exit_status_of(facts.labels), facts.end_us)
