"""The causes of failed runs by reruns and reviewers: the raw manifest and the corrections, read as they grow."""

from __future__ import annotations

import logging
from functools import partial
from typing import NamedTuple

import msgspec

from ciml.data_root import DataRoot
from ciml.datasets.history import digest_of
from ciml.feedback import corrections_log, corrections_of
from ciml.manifest.bookmarks import Bookmarks
from ciml.manifest.log import ManifestLog
from ciml.raw.causes import CAUSES_KIND, Causes
from ciml.raw.run_log import StoredRunLog
from ciml.services.feedback.history.records import RERUNS, REVIEWER
from ciml.transforms.ingest.trust import evaluate, former_policy

_log = logging.getLogger(__name__)
#: The bookmark, beside the manifest of feedback.
BOOKMARK = "_causes"
#: After so many runs the bookmark is replaced; to read as many again takes half a second.
_BOOKMARK_RUNS = 10_000


class Truth(NamedTuple):
    """The cause of a failed run.

    Attributes:
      cause: ``code`` or ``machine``; "" where nothing settles it.
      by: `RERUNS` or `REVIEWER`; "" where nothing settles it.
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
        self._data, self._settle_untrusted = data, settle_untrusted
        self._manifest = ManifestLog(data.raw)
        self._log = StoredRunLog(self._manifest, partial(evaluate, former_policy()))
        self._bookmarks = Bookmarks(data.feedback, BOOKMARK, CAUSES_KIND, partial(digest_of, self._log))
        self._reviewed: dict[str, str] = {}
        self._causes: Causes | None = None
        self._version = self._corrections = self._unsaved = 0

    def read(self) -> bool:
        """Read what is new. Return whether there was anything.

        Raises:
          EngineError: the store does not answer.
          IntegrityError: a manifest is damaged.
        """
        causes = self._causes = self._causes or self._resumed()
        before = self._version, self._corrections
        for version, delta in self._log.since(self._version):
            causes.add(delta)
            self._version = version
            self._unsaved += len(delta.rows)
        if self._unsaved >= _BOOKMARK_RUNS:
            self._bookmarks.save(self._version, causes.encode())
            self._unsaved = 0
        end = corrections_log(self._data).end(self._corrections)
        if end != self._corrections:
            self._reviewed = {run_id: found.cause for run_id, found in corrections_of(self._data).items()}
            self._corrections = end
        return (self._version, self._corrections) != before

    def of(self, run_id: str) -> Truth:
        """Return what settles the cause of a run, by what was read last; a reviewer counts more than reruns."""
        if cause := self._reviewed.get(run_id):
            return Truth(cause, REVIEWER)
        if self._causes is None or not (self._settle_untrusted or self.is_trusted(run_id)):
            return OPEN
        cause = self._causes.by_reruns(run_id)
        return Truth(cause, RERUNS) if cause else OPEN

    def is_known(self, run_id: str) -> bool:
        """Return whether anything says the cause of a run, trusted or not: a model may have learned from it."""
        if run_id in self._reviewed or self._causes is None:
            return run_id in self._reviewed
        return self._causes.has_own(run_id) or bool(self._causes.by_reruns(run_id))

    def is_trusted(self, run_id: str) -> bool:
        """Return whether a run is known and trusted."""
        return self._causes is not None and self._causes.is_trusted(run_id)

    def _resumed(self) -> Causes:
        causes = Causes(lambda job: True)
        if (found := self._bookmarks.load()) is not None:
            try:
                causes.restore(found.state)
                self._version = found.version
            except msgspec.DecodeError as error:
                _log.warning("the bookmark of the raw manifest cannot be read (%s); reading its first delta", error)
                return Causes(lambda job: True)
        return causes
