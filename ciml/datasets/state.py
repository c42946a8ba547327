"""The state of a data set's manifest: its definition, its sealed spans, and its cursor in the raw manifest.

A data set reads the runs of the raw manifest in the order of their records. Its cursor is a position there, [raw
version, index of the run within that delta]: all runs before it are sealed in a span or were not selected.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from sys import intern
from typing import Any, NamedTuple

from ciml.datasets.definition import DatasetDefinition, ResolvedDefinition
from ciml.errors import IntegrityError
from ciml.events.records import Record
from ciml.manifest.log import Delta


class Position(NamedTuple):
    """A position in the raw manifest. It is stored as an array of both numbers.

    Attributes:
      raw_version: version of a delta of the raw manifest.
      row: index among the delta's rows (`ciml.runs.run_log.RunDelta.rows`).
    """

    raw_version: int
    row: int


class ExampleFile(Record, frozen=True, gc=False):
    """One Parquet file of examples, relative to the data set's folder.

    ``digest`` is the digest of its rows (`ciml.transforms.examples.spans.rows_digest`), not of its bytes.
    """

    path: str
    digest: str
    rows: int


class SpanRun(Record, frozen=True, gc=False):
    """An example of a span, as recorded in the manifest."""

    run_id: str
    build_name: str
    split: str
    label: int
    label_name: str
    n_windows: int
    digest: str

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> SpanRun:
        return cls(
            run_id=value["run_id"],
            build_name=intern(value["build_name"]),  # runs share most texts: each is stored once
            split=intern(value["split"]),
            label=value["label"],
            label_name=intern(value["label_name"]),
            n_windows=value["n_windows"],
            digest=value["digest"],
        )


class SpanVersion(Record, frozen=True):
    """A sealed span: examples that were sealed together. A later version has the same runs with corrected labels.

    Attributes:
      span: number of the span, from 1.
      version: number of the version within the span, from 1.
      selected: position of each selected run in the raw manifest, in order.
      runs: the examples, in the same order.
      excluded: the selected runs without an example: ``run_id``, ``reason``, optional ``detail``.
      files: the files of each split that has rows.
    """

    span: int
    version: int
    selected: tuple[Position, ...]
    runs: tuple[SpanRun, ...]
    excluded: tuple[Mapping[str, str], ...]
    files: Mapping[str, tuple[ExampleFile, ...]]

    @property
    def folder(self) -> str:
        """The folder of its files, relative to the data set's folder."""
        return span_folder(self.span, self.version)

    @property
    def paths(self) -> set[str]:
        """The paths of all its files."""
        return {file.path for files in self.files.values() for file in files}

    def run_ids(self) -> Iterator[str]:
        """Yield the ids of all selected runs, examples first."""
        yield from (run.run_id for run in self.runs)
        yield from (exclusion["run_id"] for exclusion in self.excluded)

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> SpanVersion:
        return cls(
            span=value["span"],
            version=value["version"],
            selected=tuple(map(Position._make, value["selected"])),
            runs=tuple(map(SpanRun.from_json, value["runs"])),
            excluded=tuple(value["excluded"]),
            files={split: tuple(map(ExampleFile.from_json, files)) for split, files in value["files"].items()},
        )


def span_folder(span: int, version: int) -> str:
    """Return the folder of a span's version: ``span-1/version-1``."""
    return f"span-{span}/version-{version}"


class DatasetState:
    """The state of a data set after the last delta applied.

    Attributes:
      version: of the manifest; 0 for a data set that does not exist.
      definition: the definition at creation.
      source: the data path whose raw store it reads; None for its own.
      listing: the listing of a data set that was built directly from logs: ``url``, ``digest``, ``logs``, ``source``
        and ``runs_of``; None for one that reads a raw store.
      resolved: its columns and classes; None until the first span is sealed.
      cursor: the raw position of the next read.
      corrections_to: corrections in raw versions below this one are applied.
      spans: all versions of each span, by span and version.
      corrections: outcome and producer's word of runs that differ from their raw row, by run id.
      causes: the causes that runs have by reruns or reviewers (`ciml.runs.causes`), by run id.
      span_of: the number of the span of each selected run, by run id.
      time_us: time of the last commit, epoch microseconds.
    """

    def __init__(self) -> None:
        self.version = 0
        self.definition: DatasetDefinition | None = None
        self.source: str | None = None
        self.listing: Mapping[str, str] | None = None
        self.resolved: ResolvedDefinition | None = None
        self.cursor = Position(1, 0)
        self.corrections_to = 1
        self.spans: dict[int, dict[int, SpanVersion]] = {}
        self.corrections: dict[str, tuple[str, str]] = {}
        self.causes: dict[str, str] = {}
        self.span_of: dict[str, int] = {}
        self.time_us = 0

    def latest(self) -> list[SpanVersion]:
        """Return the last version of each span, in order."""
        return [versions[max(versions)] for _, versions in sorted(self.spans.items())]

    def counts(self) -> Counter[tuple[str, str]]:
        """Return the number of examples by (split, class), in the last version of each span."""
        return Counter((run.split, run.label_name) for span in self.latest() for run in span.runs)

    def excluded(self) -> Counter[str]:
        """Return the number of selected runs without an example, by reason, in the last version of each span."""
        return Counter(exclusion["reason"] for span in self.latest() for exclusion in span.excluded)

    def padding(self) -> float | None:
        """Return the share of padding in the windows of all examples; None without examples, or with aggregations."""
        if self.resolved is None or self.resolved.definition.aggregation_functions:
            return None
        lengths = [run.n_windows for span in self.latest() for run in span.runs]
        if not lengths:
            return None
        return 1 - sum(lengths) / (len(lengths) * self.resolved.windows)

    def apply(self, version: int, delta: Delta) -> None:
        """Apply the next delta.

        Raises:
          IntegrityError: the delta is not the next one, or contradicts earlier ones.
        """
        if version != self.version + 1:
            raise IntegrityError(f"data set manifest: version {version} after {self.version}")
        if version == 1:
            self.definition = DatasetDefinition.from_json(delta["definition"], "data set manifest: version 1")
            self.source = delta.get("source")
            self.listing = delta.get("listing")
        if "resolved" in delta:
            self.resolved = ResolvedDefinition.from_json(delta["resolved"], f"data set manifest: version {version}")
        if "cursor" in delta:
            cursor = Position(*delta["cursor"])
            if cursor < self.cursor:
                raise IntegrityError(f"data set manifest: version {version} goes back from {self.cursor} to {cursor}")
            self.cursor = cursor
            self.corrections_to = delta["corrections_to"]
        for span in delta.get("spans", ()):
            self._apply_span(version, SpanVersion.from_json(span))
        for run in delta.get("corrections", ()):
            self.corrections[run["run_id"]] = (run["outcome"], run["result"])
        self.causes |= {run["run_id"]: run["cause"] for run in delta.get("causes", ())}
        self.version = version
        self.time_us = delta["time_us"]

    def _apply_span(self, version: int, span: SpanVersion) -> None:
        versions = self.spans.setdefault(span.span, {})
        is_next_version = span.version == len(versions) + 1
        is_next_span = span.span == len(self.spans)
        if not is_next_version or (span.version == 1 and not is_next_span):
            raise IntegrityError(f"data set manifest: version {version} has {span.folder} out of order")
        for run_id in span.run_ids():
            if self.span_of.setdefault(run_id, span.span) != span.span:
                raise IntegrityError(f"data set manifest: version {version} has the run {run_id} twice")
        versions[span.version] = span
