"""What settles verdicts: the causes of failed runs by reruns and by reviewers.

The log of corrections holds the causes as reviewers see them: `add_corrections`, `corrections_of`. `Truths` reads the
causes by reruns and reviewers from the raw manifest and the corrections as they grow.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from functools import partial
from typing import NamedTuple

import msgspec

from ciml.data_root import DataRoot
from ciml.events.records import Record
from ciml.manifest.bookmarks import Bookmarks
from ciml.manifest.log import Delta, ManifestLog, catch_up, commit
from ciml.runs.causes import CAUSES_KIND, Causes
from ciml.runs.run_log import StoredRunLog
from ciml.transforms.examples.changes import digest_of
from ciml.trust import evaluate, former_policy
from ciml.verdicts.feedback.config import Cause
from ciml.verdicts.feedback.standing import RERUNS, REVIEWER

_log = logging.getLogger(__name__)
#: The bookmark, beside the manifest of feedback.
BOOKMARK = "_causes"
#: Number of runs after which the bookmark is replaced. Reading as many again takes half a second.
_BOOKMARK_RUNS = 10_000


class Correction(Record, frozen=True, gc=False):
    """The cause of a failed run, as a reviewer sees it.

    Attributes:
      run_id: the encoded run id.
      cause: of the failure.
      by: who says so: ``SYSTEM:ACCOUNT``, or ``operator``.
      time_us: of the reaction, epoch microseconds; of earlier versions, when it was read.
    """

    run_id: str
    cause: Cause
    by: str
    time_us: int


class CorrectionState:
    """All corrections up to a version: the last of each run and reviewer.

    Attributes:
      version: the last delta applied.
      by_run: corrections by run id, then by reviewer.
    """

    def __init__(self) -> None:
        self.version = 0
        self.by_run: dict[str, dict[str, Correction]] = {}

    def apply(self, version: int, delta: Delta) -> None:
        """Apply the next delta; see `ciml.manifest.log.State`."""
        for correction in msgspec.convert(delta["corrections"], list[Correction]):
            self.by_run.setdefault(correction.run_id, {})[correction.by] = correction

    def cause(self, run_id: str, by: str) -> Cause | None:
        """Return the cause of a run by a reviewer; None without a correction."""
        correction = self.by_run.get(run_id, {}).get(by)
        return correction.cause if correction else None


def corrections_log(data: DataRoot) -> ManifestLog:
    """Return the log of corrections."""
    return ManifestLog(data.feedback.child("corrections"))


def corrections_of(data: DataRoot) -> dict[str, Correction]:
    """Return the correction of each run that has one, by run id. Of several reviewers the last reaction counts.

    Raises:
      IntegrityError: the log is damaged.
    """
    state = catch_up(corrections_log(data), CorrectionState())
    return {
        run_id: max(by_reviewer.values(), key=lambda correction: correction.time_us)
        for run_id, by_reviewer in state.by_run.items()
    }


def add_corrections(data: DataRoot, corrections: Iterable[Correction]) -> int:
    """Store the corrections that change a cause; return their number. A repeat after a crash stores nothing twice."""
    candidates = list(corrections)
    stored = 0
    state = CorrectionState()

    def build() -> Delta | None:
        nonlocal stored
        new = [candidate for candidate in candidates if state.cause(candidate.run_id, candidate.by) != candidate.cause]
        stored = len(new)
        return {"corrections": [correction.to_json() for correction in new]} if new else None

    commit(corrections_log(data), state, build)
    return stored


class Truth(NamedTuple):
    """The cause of a failed run.

    Attributes:
      cause: ``code`` or ``machine``; "" if nothing settles it.
      by: `RERUNS` or `REVIEWER`; "" if nothing settles it.
    """

    cause: str
    by: str


OPEN = Truth("", "")


class Truths:
    """The causes of failed runs by reruns and reviewers.

    Args:
      data: the data root.
      settle_untrusted: whether reruns of untrusted runs count. Everybody who may propose a change can send some.
    """

    def __init__(self, data: DataRoot, *, settle_untrusted: bool = False) -> None:
        self._data = data
        self._settle_untrusted = settle_untrusted
        self._manifest = ManifestLog(data.raw)
        self._log = StoredRunLog(self._manifest, partial(evaluate, former_policy()))
        self._bookmarks = Bookmarks(data.feedback, BOOKMARK, CAUSES_KIND, partial(digest_of, self._log))
        self._reviewed: dict[str, str] = {}
        self._causes: Causes | None = None
        self._version = 0
        self._corrections_version = 0
        self._unsaved = 0  # rows since the bookmark

    def read(self) -> bool:
        """Read the new deltas of both manifests; return whether there were any.

        Raises:
          EngineError: the store does not answer.
          IntegrityError: a manifest is damaged.
        """
        if self._causes is None:
            self._causes, self._version = self._bookmarks.resume(lambda: Causes(lambda job: True))
        causes = self._causes
        before = (self._version, self._corrections_version)
        for version, delta in self._log.since(self._version):
            causes.add(delta)
            self._version = version
            self._unsaved += len(delta.rows)
        if self._unsaved >= _BOOKMARK_RUNS:
            self._bookmarks.save(self._version, causes.encode())
            self._unsaved = 0
        end = corrections_log(self._data).end(self._corrections_version)
        if end != self._corrections_version:
            self._reviewed = {run_id: correction.cause for run_id, correction in corrections_of(self._data).items()}
            self._corrections_version = end
        return (self._version, self._corrections_version) != before

    def of(self, run_id: str) -> Truth:
        """Return the cause of a run and what settled it, as read last; a reviewer takes precedence over reruns."""
        if cause := self._reviewed.get(run_id):
            return Truth(cause, REVIEWER)
        if self._causes is None or not (self._settle_untrusted or self.is_trusted(run_id)):
            return OPEN
        cause = self._causes.by_reruns(run_id)
        return Truth(cause, RERUNS) if cause else OPEN

    def is_known(self, run_id: str) -> bool:
        """Return whether the cause of a run is known, trusted or not: a model may have learned from it."""
        if run_id in self._reviewed:
            return True
        causes = self._causes
        return causes is not None and (causes.has_own(run_id) or bool(causes.by_reruns(run_id)))

    def is_trusted(self, run_id: str) -> bool:
        """Return whether a run is known and trusted."""
        return self._causes is not None and self._causes.is_trusted(run_id)
