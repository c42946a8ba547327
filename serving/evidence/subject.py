"""The run that evidence is about: its telemetry, the profile to compare with, and how it ended."""

from __future__ import annotations

from dataclasses import dataclass

import pyarrow as pa

from ciml.events.records import RunFacts
from ciml.transforms.profiles.profile import Profile, place_of
from ciml.verdicts import exit_status_of


@dataclass(frozen=True, slots=True, eq=False)
class Subject:
    """A run.

    Attributes:
      table: its telemetry as stored, with at least one sample.
      profile: of the passing runs of its job.
      outcome: such as ``failure`` or ``timeout``; "" where it is not known.
      exit_status: of its job, by `ciml.verdicts.exit_status`; None where it is not known.
      claimed: whether only an event that is believed less than the run's own reports the exit status.
      end_us: when the CI system says that it ended, epoch microseconds; None where it is not known.
      place: its kind of machine, by `ciml.transforms.profiles.profile.place_of`.
    """

    table: pa.Table
    profile: Profile
    outcome: str = ""
    exit_status: int | None = None
    end_us: int | None = None
    claimed: bool = False
    place: str = ""

    @classmethod
    def of(cls, facts: RunFacts, table: pa.Table, profile: Profile, claimed: RunFacts | None = None) -> Subject:
        """Return the subject of a run.

        Args:
          facts: of the run.
          table: its telemetry.
          profile: of the passing runs of its job.
          claimed: its facts, completed by what events claim that are believed less; None without such events.
        """
        status = exit_status_of(facts.labels)
        is_claimed = False
        if status is None and claimed is not None:
            status = exit_status_of(claimed.labels)
            is_claimed = status is not None
        return cls(table, profile, facts.outcome or "", status, facts.end_us, is_claimed, place_of(facts))
