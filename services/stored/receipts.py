"""What is stored of an erasure: its plan while it is under way, and its receipt afterwards."""

from __future__ import annotations

from dataclasses import dataclass, field

import msgspec

from ciml.data_root import DataRoot
from ciml.errors import IntegrityError
from ciml.events.run_id import ERASED
from ciml.manifest.log import Delta, ManifestLog, catch_up
from ciml.runs.erased import RunCriteria
from ciml.storage.json_files import read_stored

PLAN = "plan.json"


class Plan(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """An erasure that is under way.

    Attributes:
      criteria: by which the runs were found.
      run_ids: the runs.
      origins: of messages that name them and are stored, because they could not be processed.
      letters: paths of such messages, below the raw store.
      folders: those of the runs' objects.
      tables: names of the published tables.
      author, reason: of the erasure.
      began_us: epoch microseconds.
    """

    criteria: RunCriteria
    run_ids: tuple[str, ...]
    origins: tuple[tuple[str, int, int], ...]
    letters: tuple[str, ...]
    folders: tuple[str, ...]
    tables: tuple[str, ...]
    author: str
    reason: str
    began_us: int


@dataclass(frozen=True)
class Receipt:
    """What an erasure did. It names no erased run by its own id, and no person but its author.

    Attributes:
      version: of the receipt in its manifest.
      author, reason: of the erasure.
      by: the criteria: ``owner``, ``change``, ``run``, ``before``.
      runs: ids of the erased runs, as they are now.
      changed: number of changed and removed objects by kind.
      remaining: number of objects in which a name is left, by folder: a word like that of the owner, or an id in an
        object that ciml did not write.
      searched_bytes: of the objects that were searched, compressed content included.
      began_us, time_us: of the first step and of the receipt, epoch microseconds.
    """

    version: int
    author: str
    reason: str
    by: tuple[str, ...]
    runs: tuple[str, ...]
    changed: dict[str, int]
    remaining: dict[str, int]
    searched_bytes: int
    began_us: int
    time_us: int

    def lines(self) -> list[str]:
        """Return the receipt as lines of text."""
        changed = ", ".join(f"{number:,} {kind}" for kind, number in sorted(self.changed.items()) if number)
        return [
            f"receipt {self.version}: {len(self.runs):,} runs erased (by {', '.join(self.by)}): {self.reason}",
            f"  changed or removed: {changed or 'nothing'}",
            f"  searched: {self.searched_bytes / 1e6:,.1f} MB; objects with a name left: "
            f"{sum(self.remaining.values()):,}",
        ]


@dataclass
class Receipts:
    """The receipts of a data root, in order. ``version`` is that of their manifest."""

    version: int = 0
    receipts: list[Receipt] = field(default_factory=list)

    def apply(self, version: int, delta: Delta) -> None:
        """Apply the next delta. Raises `IntegrityError` if it is not one of this log."""
        if version != self.version + 1:
            raise IntegrityError(f"erasures: version {version} follows {self.version}")
        if delta["kind"] != ERASED:
            raise IntegrityError(f"erasures: version {version} has the unknown kind {delta['kind']!r}; upgrade ciml")
        try:
            self.receipts.append(msgspec.convert({**delta["receipt"], "version": version}, Receipt))
        except msgspec.ValidationError as error:
            raise IntegrityError(f"erasures: version {version}: {error}") from None
        self.version = version


def read_receipts(data: DataRoot) -> list[Receipt]:
    """Return the receipts of a data root, in order. Raises `IntegrityError` if one is malformed."""
    state = Receipts()
    catch_up(ManifestLog(data.erasures), state)
    return state.receipts


def read_plan(data: DataRoot) -> Plan | None:
    """Return the plan of the erasure that is under way; None without one."""
    value = read_stored(data.erasures, PLAN)
    if value is None:
        return None
    try:
        return msgspec.convert(value, Plan)
    except msgspec.ValidationError as error:
        raise IntegrityError(f"{data.erasures.url(PLAN)} is not a plan: {error}") from None
