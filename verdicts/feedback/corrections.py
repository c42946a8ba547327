"""Corrections of the causes of failed runs: their log, how they are added, and what counts."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Literal, NamedTuple, get_args

from ciml.data_root import DataRoot
from ciml.errors import IntegrityError
from ciml.manifest.log import Delta, ManifestLog, StaleWriterError, commit

Cause = Literal["code", "machine"]
CAUSES: tuple[Cause, ...] = get_args(Cause)


class Correction(NamedTuple):
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
            correction = _read(version, record)
            self.found.setdefault(correction.run_id, {})[correction.by] = correction
        self.version = version


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
            correction
            for correction in candidates
            if _differs(state.found.get(correction.run_id, {}).get(correction.by), correction)
        ]
        stored = len(new)
        return {"corrections": [correction._asdict() for correction in new]} if new else None

    try:
        commit(log, state, build)
    except StaleWriterError:
        state = CorrectionState()
        commit(log, state, build)
    return stored


def _differs(known: Correction | None, one: Correction) -> bool:
    return known is None or known.cause != one.cause


def _read(version: int, record: Mapping[str, Any]) -> Correction:
    try:
        correction = Correction(**record)
    except TypeError as error:
        raise IntegrityError(f"corrections: version {version}: {error}") from None
    if (
        correction.cause not in CAUSES
        or type(correction.run_id) is not str
        or type(correction.by) is not str
        or type(correction.time_us) is not int
    ):
        raise IntegrityError(f"corrections: version {version}: malformed record of run {correction.run_id!r:.80}")
    return correction
