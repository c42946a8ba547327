"""The failures of a data root: its signatures with the operators' notes, as commands and the Python API show them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from ciml.data_root import DataRoot
from ciml.errors import NotFoundError
from ciml.globs import matches_any
from ciml.transforms.logs.signatures import Signature, Signatures
from ciml.verdicts.signatures.notes import Note, NoteState, read_notes
from ciml.verdicts.signatures.stored import read_signatures


@dataclass(frozen=True)
class FailedRuns:
    """Failed runs that share a line of their output, as far as they are known.

    Attributes:
      id: of the signature, 12 hexadecimal digits.
      line: the line, at most 200 characters; "" if the output ends before a line that passing runs print.
      template: the line without numbers, paths and ids. With `ends`, of the line that is missing.
      ends: whether the output ends before `template`.
      run: the id of the first run.
      number: of the line in the output of `run`, from 1; with `ends`, the last line; 0 if the output expired.
      job: the job that it is limited to; "" for all jobs.
      runs: their number.
      trusted: of these, the trusted ones.
      changes: their number.
      spread: the greatest number of changes within six hours, a trusted run among them.
      indicates: what the spread indicates: ``code``, ``machine``, or "" for neither.
      first_us, last_us: of the runs, epoch microseconds.
      latest_changes, latest_runs: the latest of them, oldest first.
      jobs, nodes, providers: the number of runs of each.
      note: what an operator says: ``name``, ``cause``, ``text``, ``author``, ``time_us``; None without a note.
      same_as: the id of the signature that supersedes it; "" for none.
    """

    id: str
    line: str
    template: str
    ends: bool
    run: str
    number: int
    job: str
    runs: int
    trusted: int
    changes: int
    spread: int
    indicates: str
    first_us: int
    last_us: int
    latest_changes: tuple[str, ...]
    latest_runs: tuple[str, ...]
    jobs: dict[str, int]
    nodes: dict[str, int]
    providers: dict[str, int]
    note: Note | None
    same_as: str

    @property
    def text(self) -> str:
        """The line, or where the output ends."""
        return f"ends before: {self.template}" if self.ends else self.line

    def to_json(self) -> dict[str, Any]:
        """Return the fields as JSON."""
        return {**asdict(self), "note": None if self.note is None else self.note.to_json()}


def failures(data: DataRoot, *, since_us: int | None = None, jobs: Sequence[str] = ()) -> list[FailedRuns]:
    """Return the signatures of failed runs, the one with the latest run first.

    Args:
      data: the data root.
      since_us: those with a run at or after this time, epoch microseconds.
      jobs: globs; those with a run of a job that matches one. Of a signature of many jobs, 20 are known.

    Raises:
      EngineError: the store does not answer.
      IntegrityError: a manifest is damaged.
    """
    signatures = read_signatures(data)
    notes = read_notes(data.failures)
    return [
        failed_runs(signature, notes)
        for signature in signatures.all()
        if (since_us is None or signature.last_us >= since_us)
        and (not jobs or any(matches_any(tuple(jobs), job) for job in signature.jobs))
    ]


def find_failure(data: DataRoot, name: str) -> FailedRuns:
    """Return a signature, given its id, the beginning of its id, or the id of one of its latest runs.

    Raises:
      NotFoundError: there is none, or several ids begin so.
    """
    return failed_runs(_find(read_signatures(data), name), read_notes(data.failures))


def _find(signatures: Signatures, name: str) -> Signature:
    exact = signatures.get(name) or signatures.of_run(name)
    if exact is not None:
        return exact
    matching = [signature for signature in signatures.all() if name and signature.id.startswith(name)]
    if len(matching) == 1:
        return matching[0]
    if matching:
        ids = ", ".join(signature.id for signature in matching[:5])
        raise NotFoundError(f"{len(matching)} failure signatures begin with {name!r:.40}: {ids}; give more digits")
    raise NotFoundError(f"no failure signature {name!r:.80}, and no run with one; ciml failures lists them")


def failed_runs(signature: Signature, notes: NoteState) -> FailedRuns:
    """Return a signature with the note in force on it."""
    key = signature.key
    line = signature.line
    current = notes.current(signature.id)
    return FailedRuns(
        id=signature.id,
        line="" if key.is_end else line.text if line else key.template,
        template=key.template,
        ends=key.is_end,
        run=signature.founder,
        number=line.number if line else 0,
        job=key.job,
        runs=signature.runs,
        trusted=signature.trusted,
        changes=signature.changes,
        spread=signature.spread,
        indicates=signature.judgement,
        first_us=signature.first_us,
        last_us=signature.last_us,
        latest_changes=tuple(signature.by_change),
        latest_runs=tuple(signature.latest),
        jobs=signature.jobs,
        nodes=signature.nodes,
        providers=signature.providers,
        note=notes.of(signature.id),
        same_as=current if current != signature.id else "",
    )
