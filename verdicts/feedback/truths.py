"""What settles verdicts, and the report of settled ones.

The log of corrections holds the causes of failed runs as reviewers see them: `add_corrections`, `corrections_of`.
`Truths` reads the causes of failed runs by reruns and reviewers from the raw manifest and the corrections as they grow.
`report` compares recorded verdicts with them: precision by model, project and cause, the base rate, and the precision
of the duration alone.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from functools import partial
from typing import Any, NamedTuple

import msgspec
import numpy as np

from ciml.data_root import DataRoot
from ciml.errors import IntegrityError
from ciml.events.records import Record
from ciml.manifest.bookmarks import Bookmarks
from ciml.manifest.log import Delta, ManifestLog, StaleWriterError, commit
from ciml.runs.causes import CAUSES_KIND, Causes
from ciml.runs.run_log import StoredRunLog
from ciml.transforms.examples.plan import digest_of
from ciml.trust import evaluate, former_policy
from ciml.verdicts.feedback.config import CAUSES, Cause, Policy
from ciml.verdicts.feedback.standing import (
    RERUNS,
    REVIEWER,
    Mode,
    RecordedVerdict,
    Share,
    Standings,
    precision_of,
    reruns_of,
)

_log = logging.getLogger(__name__)
#: The bookmark, beside the manifest of feedback.
BOOKMARK = "_causes"
#: After so many runs the bookmark is replaced; to read as many again takes half a second.
_BOOKMARK_RUNS = 10_000
_FOLDS = 5
#: Settled runs with a known duration before their duration is tried as a baseline.
_MIN_BASELINE_RUNS = 20


class Correction(Record, frozen=True, gc=False):
    """The cause of a failed run, as a reviewer sees it.

    Attributes:
      run_id: the encoded run id.
      cause: of the failure.
      by: who says so: ``SYSTEM:ACCOUNT``, or ``operator``.
      time_us: when it was read, epoch microseconds.
    """

    run_id: str
    cause: Cause
    by: str
    time_us: int


class CorrectionState:
    """All corrections up to a version: the last of each run and reviewer.

    Attributes:
      version: the last delta applied.
      found: by run id, then by reviewer.
    """

    def __init__(self) -> None:
        self.version = 0
        self.found: dict[str, dict[str, Correction]] = {}

    def apply(self, version: int, delta: Delta) -> None:
        """Apply the next delta. Raises `IntegrityError` for one that is malformed."""
        if version != self.version + 1:
            raise IntegrityError(f"corrections: version {version} follows {self.version}")
        for record in delta["corrections"]:
            try:
                correction = msgspec.convert(record, Correction)
            except msgspec.ValidationError as error:
                raise IntegrityError(f"corrections: version {version}: malformed record: {error}") from None
            self.found.setdefault(correction.run_id, {})[correction.by] = correction
        self.version = version

    def cause(self, run_id: str, by: str) -> Cause | None:
        """Return the cause of a run by a reviewer; None without a correction."""
        correction = self.found.get(run_id, {}).get(by)
        return correction.cause if correction else None


def corrections_log(data: DataRoot) -> ManifestLog:
    """Return the log of corrections."""
    return ManifestLog(data.feedback.child("corrections"))


def corrections_of(data: DataRoot) -> dict[str, Correction]:
    """Return the correction of each run that has one, by run id. Of several reviewers the one read last counts.

    Raises:
      IntegrityError: the log is damaged.
    """
    state = CorrectionState()
    for version, delta in corrections_log(data).since(0):
        state.apply(version, delta)
    return {
        run_id: max(by_reviewer.values(), key=lambda correction: correction.time_us)
        for run_id, by_reviewer in state.found.items()
    }


def add_corrections(data: DataRoot, corrections: Iterable[Correction]) -> int:
    """Store those that say something new; return their number. A repeat after a crash stores nothing twice."""
    candidates = list(corrections)
    stored = 0
    log = corrections_log(data)
    state = CorrectionState()

    def build() -> Delta | None:
        nonlocal stored
        new = [
            correction for correction in candidates if state.cause(correction.run_id, correction.by) != correction.cause
        ]
        stored = len(new)
        return {"corrections": [correction.to_json() for correction in new]} if new else None

    try:
        commit(log, state, build)
    except StaleWriterError:
        state = CorrectionState()
        commit(log, state, build)
    return stored


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
        self._data = data
        self._settle_untrusted = settle_untrusted
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
            self._reviewed = {run_id: correction.cause for run_id, correction in corrections_of(self._data).items()}
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
        if (bookmark := self._bookmarks.load()) is not None:
            try:
                causes.restore(bookmark.state)
                self._version = bookmark.version
            except msgspec.DecodeError as error:
                _log.warning("the bookmark of the raw manifest cannot be read (%s); reading its first delta", error)
                return Causes(lambda job: True)
        return causes


@dataclass(frozen=True)
class Row:
    """The verdicts of a model and cause in a project, or in all projects.

    Attributes:
      model: name of the model.
      project: name of the project; "" for all.
      cause: the verdict.
      mode: whether the model may say it there.
      detail: the reason why it may not.
      open: verdicts that nothing has settled yet.
      precision: of the settled verdicts that count.
      base_rate: how often the settled failed runs have this cause.
      duration: precision of the same verdict by the duration of the run alone, on the same settled runs, each predicted
        from the runs of other changes; of 0 runs where it cannot be computed.
      reruns: of the verdicts that reruns settled, those whose rerun passed.
    """

    model: str
    project: str
    cause: str
    mode: Mode
    detail: str
    open: int
    precision: Share
    base_rate: Share
    duration: Share
    reruns: Share

    def to_json(self) -> dict[str, Any]:
        """Return the row as JSON; shares have ``right``, ``runs``, ``value``, ``low`` and ``high``."""
        values = {column.name: getattr(self, column.name) for column in fields(self)}
        shares = {name: share.to_json() for name, share in values.items() if isinstance(share, Share)}
        return {**values, "settled": self.precision.runs, **shares}


def report(verdicts: Iterable[RecordedVerdict], policy: Policy, now_us: int) -> list[Row]:
    """Return the rows of all models: all projects first, then each project.

    Args:
      verdicts: recorded verdicts.
      policy: the conditions of a message.
      now_us: the present, epoch microseconds.
    """
    recorded = list(verdicts)
    standings = Standings(recorded, policy, now_us)
    rows = []
    for model in sorted({verdict.model for verdict in recorded}):
        of_model = [verdict for verdict in recorded if verdict.model == model]
        by_duration = _answers_by_duration(standings.history(model).settled)
        for project in ("", *sorted({verdict.project for verdict in of_model if verdict.claim} - {""})):
            for cause in CAUSES:
                rows.append(_row(standings, policy, model, project, cause, of_model, by_duration))
    return rows


def _row(
    standings: Standings,
    policy: Policy,
    model: str,
    project: str,
    cause: str,
    verdicts: Sequence[RecordedVerdict],
    by_duration: dict[str, str],
) -> Row:
    history = standings.history(model)
    scope = project or None
    standing = standings.of(model, project, cause)
    claims = history.claims(cause, scope, policy.settled_window)
    answers = [
        verdict.settled == cause
        for verdict in history.settled
        if by_duration.get(verdict.id) == cause and scope in (None, verdict.project)
    ]
    waiting = {
        verdict.subject
        for verdict in verdicts
        if verdict.claim and not verdict.settled and verdict.cause == cause and scope in (None, verdict.project)
    }
    return Row(
        model,
        project,
        cause,
        standing.mode,
        standing.detail,
        len(waiting),
        precision_of(claims),
        history.base_rate(cause, scope),
        Share(sum(answers), len(answers)),
        reruns_of(claims),
    )


def _answers_by_duration(settled: Sequence[RecordedVerdict]) -> dict[str, str]:
    """Return the cause of each settled run by its duration, from runs of other changes; {} where these are too few."""
    runs = [verdict for verdict in settled if verdict.seconds is not None and verdict.settled in CAUSES]
    if len(runs) < _MIN_BASELINE_RUNS or len({verdict.settled for verdict in runs}) < 2:
        return {}
    from ciml.training.evaluation.baselines import predict_by

    seconds = np.array([verdict.seconds for verdict in runs], np.float64)
    labels = np.array([CAUSES.index(verdict.settled) for verdict in runs], np.int64)
    subjects = {subject: number for number, subject in enumerate(sorted({verdict.subject for verdict in runs}))}
    folds = np.array([subjects[verdict.subject] % _FOLDS for verdict in runs])
    answers: dict[str, str] = {}
    for fold in range(_FOLDS):
        held = np.flatnonzero(folds == fold)
        others_places = np.flatnonzero(folds != fold)
        if held.size and others_places.size:
            likely = predict_by(
                "duration", seconds[others_places], labels[others_places], seconds[held], len(CAUSES)
            ).argmax(axis=1)
            answers |= {runs[place].id: CAUSES[cause] for place, cause in zip(held, likely, strict=True)}
    return answers
