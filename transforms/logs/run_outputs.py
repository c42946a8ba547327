"""The stored outputs of runs, reduced to templates, one at a time; the profile of a job by those of passing runs."""

from __future__ import annotations

import logging
import threading
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from typing import NamedTuple

from ciml.errors import IntegrityError
from ciml.events.records import OutputFile
from ciml.limits import MAX_READ_OUTPUTS_BYTES
from ciml.manifest.log import ManifestLog
from ciml.runs.latest_runs import StoredRun, latest_runs
from ciml.runs.outputs import KeptOutput, OutputTemplates, read_output, read_templates
from ciml.runs.run_log import find_rows
from ciml.runs.state import RawState
from ciml.storage import Store
from ciml.transforms.logs.profile import OutputProfile, Printed, printed_templates, profile_of
from ciml.transforms.logs.ranking import ScannedOutput, scan
from ciml.transforms.logs.templates import MASKS

_LOG = logging.getLogger(__name__)


def outputs_of_stored(raw: Store, run_ids: Iterable[str]) -> StoredOutputs:
    """Return the outputs of runs by their rows in the manifest of a raw store."""
    rows = find_rows(ManifestLog(raw), run_ids)
    return StoredOutputs(raw, {run_id: row.output for run_id, row in rows.items()})


class StoredOutputs:
    """Returns the output of a run by its id; None if none is stored, or the stored one has expired.

    Args:
      raw: the raw store.
      files: of each run, what its row records of the output.
      skips_damaged: whether a damaged output counts as unavailable, so that its run is predicted by the rest.
    """

    def __init__(self, raw: Store, files: Mapping[str, OutputFile | None], *, skips_damaged: bool = False) -> None:
        self._raw = raw
        self._files = files
        self._skips_damaged = skips_damaged

    def __call__(self, run_id: str) -> ScannedOutput | None:
        """Read an output.

        Raises:
          IntegrityError: it is damaged, or lost before its time; not with ``skips_damaged``.
          EngineError: the store does not answer.
        """
        try:
            read = read_scanned(self._raw, self._files.get(run_id))
        except IntegrityError:
            if not self._skips_damaged:
                raise
            return None
        return None if isinstance(read, str) else read.scanned


class ReadOutput(NamedTuple):
    """A stored output, and the same reduced to templates."""

    kept: KeptOutput
    scanned: ScannedOutput


class LastRead:
    """The outputs that were read last. Thread-safe.

    Args:
      most: bytes of their text.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._size = 0
        self._outputs: OrderedDict[str, ReadOutput] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, url: str) -> ReadOutput | None:
        with self._lock:
            return self._outputs.get(url)

    def add(self, url: str, output: ReadOutput) -> None:
        with self._lock:
            if url in self._outputs:
                return
            self._outputs[url] = output
            self._size += len(output.kept.data)
            while self._size > self._most:
                _, oldest = self._outputs.popitem(last=False)
                self._size -= len(oldest.kept.data)


#: Features of a run need its output, and a moment later the evidence of its verdict does.
_last_read = LastRead(MAX_READ_OUTPUTS_BYTES)


def read_scanned(raw: Store, file: OutputFile | None) -> ReadOutput | str:
    """Return a stored output and its templates, or the reason why there is none; see `read_output`.

    Raises:
      IntegrityError: it is damaged, or lost before its time.
      EngineError: the store does not answer.
    """
    url = raw.url(file.path) if file is not None and not file.missing else ""
    output = _last_read.get(url)
    if output is not None:
        return output
    kept_output = read_output(raw, file)
    if isinstance(kept_output, str):
        return kept_output
    output = ReadOutput(kept_output, scan(kept_output.data))
    _last_read.add(url, output)
    return output


#: The last passing runs of a job with which a failed run is compared.
PASSING_RUNS = 20


def stored_printed(raw: Store, output: OutputFile | None) -> dict[str, Printed] | None:
    """Return the templates that a run printed, from its stored output; None without one.

    Templates that were made by other masks are made again from the text; None if that has expired.

    Raises:
      IntegrityError: the output is damaged.
      EngineError: the store does not answer.
    """
    stored = read_templates(raw, output)
    if isinstance(stored, str):
        return None
    if stored.masks == MASKS:
        return printed_of(stored)
    kept_output = read_output(raw, output)
    return None if isinstance(kept_output, str) else printed_templates(scan(kept_output.data))


def printed_of(stored: OutputTemplates) -> dict[str, Printed]:
    """Return stored templates in the form of `ciml.transforms.logs.profile.printed_templates`."""
    last = max(stored.lines - 1, 1)
    rows = zip(stored.templates, stored.counts, stored.first_lines, strict=True)
    return {template: Printed(count, (first - 1) / last) for template, count, first in rows}


def passing_runs(log: ManifestLog, state: RawState, job: str) -> Iterator[StoredRun]:
    """Yield the trusted runs of a job that passed and have an output, the last committed first."""
    for run in latest_runs(log, state):
        has_output = run.output is not None and bool(run.output.path)
        if has_output and run.facts.build_name == job and run.outcome == "success" and run.trust.trusted:
            yield run


def stored_profile(raw: Store, log: ManifestLog, state: RawState, job: str) -> OutputProfile:
    """Return the profile of a job by its last `PASSING_RUNS` trusted passing runs. A damaged output does not count.

    Raises:
      EngineError: the store does not answer.
    """
    outputs = (run.output for run in passing_runs(log, state, job))
    return profile_of(islice(printed_by_passing(raw, outputs), PASSING_RUNS))


def printed_by_passing(raw: Store, outputs: Iterable[OutputFile | None]) -> Iterator[dict[str, Printed]]:
    """Yield the templates of each output of a passing run, by `stored_printed`, except damaged and missing ones.

    Raises:
      EngineError: the store does not answer.
    """
    for output in outputs:
        try:
            printed = stored_printed(raw, output)
        except IntegrityError as error:
            _LOG.warning("a passing run is not compared with: %s", error)
            continue
        if printed is not None:
            yield printed
