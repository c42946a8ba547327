"""The runs of a listing as a data set's source, straight from their logs: see `pipelines.run_sources`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from functools import cached_property

import numpy as np
import pyarrow as pa

from ciml.accounting import LISTS, RawState, reconcile
from ciml.dataset_plan import SelectedRun, SpanPlan
from ciml.definitions import ResolvedDefinition
from ciml.errors import EngineError, Refused
from ciml.listing import Reading
from ciml.listing_files import Listing
from ciml.manifests import Delta
from ciml.records import Batch, Candidate, OffsetRange, Origin, Outcome, RawFile
from transforms.downsample import Windows, downsample, merge_windows
from transforms.examples import Examples, examples_from
from transforms.fetch_policy import FetchPolicy
from transforms.listed import decode_lines
from transforms.settle import PASSING, read_logs
from transforms.trust import TrustPolicy, judge

_LOGS = 250  # that are read and parsed together
_KEPT_BYTES = 256 << 20  # of telemetry that need not be read again once the columns are known
#: A log that is read when the data set is made has no raw object.
_NO_FILE = RawFile("", "", 0, 0)


class ListedRuns:
    """The runs of a listing, whose logs are read when they are needed, and stored nowhere.

    A log that cannot be used excludes its run, with the reason that its dead letter would have.

    Args:
      listing: an open one.
      reading: what its lines mean.
      trust: judges the runs: the columns and classes are those of trusted ones, where there are any.
      fetch: from where logs may be read, and the limits.

    Attributes:
      log: its lines.
      told: what a data set's manifest says of it.
    """

    def __init__(self, listing: Listing, reading: Reading, trust: TrustPolicy, fetch: FetchPolicy) -> None:
        self.log = ListedLog(listing, reading, trust)
        self.told = {"url": listing.url, "digest": listing.digest, **asdict(reading)}
        # Opening a file of a folder is work that holds the interpreter: threads only slow it down.
        self._fetch = replace(fetch, threads=1) if "://" not in reading.logs else fetch
        self._kept: dict[str, pa.Table] = {}

    def columns(self, runs: Sequence[SelectedRun]) -> Sequence[tuple[str, ...]]:
        """Raises `EngineError` where a log cannot be read for a reason that says nothing of it."""
        found, size = list[tuple[str, ...]](), 0
        for start in range(0, len(runs), _LOGS):
            chunk = runs[start : start + _LOGS]
            for run, table in zip(chunk, self._tables(chunk), strict=True):
                if isinstance(table, Refused):
                    continue
                found.append(tuple(table.column_names))
                if (size := size + 8 * table.num_rows * table.num_columns) <= _KEPT_BYTES:
                    self._kept[run.run_id] = table
        return found

    def examples(self, part: SpanPlan, resolved: ResolvedDefinition) -> Examples:
        """Raises `EngineError` where a log cannot be read for a reason that says nothing of it."""

        def windows_of(taken: Sequence[int]) -> Windows:
            parts = []
            for start in range(0, len(taken), _LOGS):
                chunk = [part.runs[at] for at in taken[start : start + _LOGS]]
                parts.append((np.arange(start, start + len(chunk)), self._windows(chunk, resolved)))
            return merge_windows(parts, len(taken)) if parts else downsample([], resolved)

        return examples_from([run.mention for run in part.runs], windows_of, resolved)

    def _windows(self, chunk: Sequence[SelectedRun], resolved: ResolvedDefinition) -> Windows:
        tables = [self._kept.pop(run.run_id, None) for run in chunk]
        missing = [at for at, table in enumerate(tables) if table is None]
        refused: list[tuple[int, Refused]] = []
        for at, table in zip(missing, self._tables([chunk[at] for at in missing]), strict=True):
            if isinstance(table, Refused):
                refused.append((at, table))
            else:
                tables[at] = table
        good = [at for at, table in enumerate(tables) if table is not None]
        windows = downsample([table for table in tables if table is not None], resolved)
        if not refused:
            return windows
        whole = merge_windows([(np.array(good, np.int64), windows)], len(chunk))
        return Windows(
            whole.values, whole.run, whole.position, whole.n_windows,
            tuple(sorted((*whole.refused, *refused), key=lambda each: each[0])),
        )  # fmt: skip

    def _tables(self, runs: Sequence[SelectedRun]) -> list[pa.Table | Refused]:
        found: dict[str, pa.Table | Refused] = {}
        candidates = [
            Candidate(Origin("", 0, at), "", run.mention, address=self.log.addresses.get(run.run_id, ""))
            for at, run in enumerate(runs)
        ]
        for batch in read_logs(candidates, self._fetch):
            found.update((each.mention.run_id, each.telemetry) for each in batch.candidates)
            for outcome in batch.settled:
                if outcome.reason in PASSING:
                    raise EngineError(f"{outcome.run_id}: its log cannot be read: {outcome.reason}, {outcome.detail}")
                found[outcome.run_id] = Refused(outcome.reason, outcome.detail)
        return [found[run.run_id] for run in runs]


class ListedLog:
    """A listing as the raw manifest of one version that a backfill of it would make, were every log in order.

    Attributes:
      version: of that manifest.
      addresses: where the logs of runs are, by run id, where their mention does not say so.
      left_out: how many lines are no run, by what they are and why.
    """

    version = 1

    def __init__(self, listing: Listing, reading: Reading, trust: TrustPolicy) -> None:
        self._listing, self._reading, self._trust = listing, reading, trust
        self.addresses: dict[str, str] = {}
        self.left_out = Counter[tuple[str, str]]()

    def url(self) -> str:
        """The listing, for messages."""
        return self._listing.url

    def since(self, version: int) -> Iterator[tuple[int, Delta]]:
        """As `ManifestLog.since`."""
        if version < self.version:
            yield self.version, self._delta

    def read(self, version: int) -> Delta:
        """As `ManifestLog.read`."""
        if version != self.version:
            raise FileNotFoundError(version)
        return self._delta

    @cached_property
    def _delta(self) -> Delta:
        listing = self._listing
        batches = (
            decode_lines(OffsetRange(listing.topic, "", 0, each.start, each.end), listing.read(each), self._reading)
            for each in listing.blocks
        )
        delta = reconcile(RawState(), (self._settled(judge(batch, self._trust)) for batch in batches), 0)
        if delta is None:
            return {name: [] for name in LISTS.values()}
        for kind, name in LISTS.items():
            if kind != "run":
                self.left_out.update((kind, record.get("reason", "")) for record in delta[name])
        return delta

    def _settled(self, batch: Batch) -> Batch:
        runs = []
        for each in batch.candidates:
            runs.append(Outcome("run", each.origin, mention=each.mention, trust=each.trust, file=_NO_FILE))
            if each.address:
                self.addresses.setdefault(each.mention.run_id, each.address)
        return Batch(batch.covers, settled=[*batch.settled, *runs])
