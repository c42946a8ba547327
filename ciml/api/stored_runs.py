"""The runs of a data root: loading, reading and excluding them."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING

from ciml.api.telemetry import arrow_table, is_table, micros
from ciml.api.types import Moment, Path, Table
from ciml.data_root import DataRoot
from ciml.errors import CimlError, UnknownRunError
from ciml.progress import Progress, no_progress

if TYPE_CHECKING:
    import pyarrow as pa

    from ciml.events.records import OutcomeWord
    from ciml.pipelines.backfill.load_report import LoadReport
    from ciml.runs.run_log import RunFiles
    from ciml.verdicts.signatures.failures import FailedRuns


class StoredRuns:
    """The methods of `ciml.Data` for runs."""

    _root: DataRoot

    def load(
        self,
        logs: Path,
        results: Path | Table,
        *,
        mapping: Mapping[str, str] | None = None,
        zone: str | None = None,
        max_bad: float = 0.1,
        source: str = "backfill",
        jobs: Sequence[str] = ("*",),
        trust_policy: Path | None = None,
        dry_run: bool = False,
        progress: Progress | None = None,
    ) -> LoadReport:
        """Load logs and a table of results into the raw store, as ``ciml load`` does.

        A load commits all usable runs or nothing. Loading the same table again changes nothing; a table with more rows
        adds the new ones.

        Args:
          logs: folder or ``s3://`` prefix of the logs.
          results: a file (CSV, Parquet, JSON lines) or a table, with a row for each run.
          mapping: meaning of columns that is not to be guessed. It has ciml's name by the name in ``results``, or ``-``
            to leave a column out. The page docs/load.md lists the names.
          zone: IANA zone of times without a zone.
          max_bad: largest allowed share of rows that are bad or have no log, 0 to 1.
          source: name of the table in the trust policy and in the run ids.
          jobs: globs of the jobs to load.
          trust_policy: TOML file of the trust policy; by default one that trusts loaded logs.
          dry_run: survey the rows, and commit nothing.
          progress: called as the load proceeds.

        Returns:
          A report: the meaning of the columns, and the number of rows by outcome. ``print(report)`` prints it as the
          command does.

        Raises:
          CimlError: too many rows are unusable, or the results lack a required column. Nothing was committed.

        Example:
          >>> import pandas
          >>> results = pandas.DataFrame({
          ...     "id": ["a1", "a2"], "job": "unit", "result": ["SUCCESS", "FAILURE"],
          ...     "start": "2026-11-24T12:00:00Z", "log": ["unit-000.csv", "unit-001.csv"],
          ... })
          >>> report = ciml.open("mine", create=True).load("logs", results)
          >>> report.rows, report.totals["run"]
          (2, 2)
        """
        from ciml.pipelines.backfill.load import load
        from ciml.stored_trust import policy_of

        return load(
            self._root,
            os.fspath(logs),
            arrow_table(results) if is_table(results) else results,
            mapping=mapping,
            zone=zone,
            max_bad=max_bad,
            source=source,
            jobs=jobs,
            trust=policy_of(self._root, trust_policy),
            dry_run=dry_run,
            progress=progress or no_progress,
        )

    def runs(
        self,
        *,
        job: str | Sequence[str] = (),
        outcome: OutcomeWord | Sequence[OutcomeWord] = (),
        source: str | Sequence[str] = (),
        since: Moment | None = None,
        until: Moment | None = None,
        trusted: bool | None = None,
    ) -> pa.Table:
        """Return the stored runs, one row for each, in the order of their commits. By default all runs.

        A run must match all criteria. A run is in the table as soon as it is committed, before it is packed.

        Args:
          job: a job or a glob of jobs, or several of them.
          outcome: ``success``, ``failure``, ``error``, ``timeout``, ``cancellation`` or ``skip``, or several of them;
            including corrections.
          source: name of a source, or several of them.
          since: runs that ended at or after this time.
          until: runs that began before this time.
          trusted: the decision of the trust policy.

        Returns:
          A table with the run facts (``run_id``, ``build_name``, ``provider``, ``start_time``, ``labels``, …) and the
          current ``outcome``, including corrections. ``trusted`` and ``rule`` are the decision of the trust policy at
          ingestion; ``rows`` and ``digest`` describe the telemetry. ``output_bytes`` and ``output_lines`` describe the
          stored output of the job, and are null without one. ``output_missing`` is then the reason, ``no_output`` if
          none was looked for. Each label of a selected run also has a column ``label.NAME`` of text, null for runs
          without it. Of more than 100 labels, only the most frequent ones have a column.

        Raises:
          CimlError: an unknown outcome, or an invalid time.

        Example:
          >>> runs = data.runs()
          >>> runs.num_rows, sorted(set(runs["outcome"].to_pylist()))
          (120, ['failure', 'success'])
          >>> frame = data.runs(job="un*", outcome=["failure", "timeout"], since="2026-11-24T00:00Z").to_pandas()
          >>> frame.groupby(["build_name", "label.size"])["rows"].mean().to_dict()
          {('unit', 'small'): 60.0}
        """
        from ciml.events.outcomes import OUTCOMES
        from ciml.runs.latest_runs import RunSelection, latest_runs
        from ciml.runs.state import open_raw
        from ciml.runs.tables.row_tables import run_table, with_label_columns

        outcomes = _texts(outcome)
        for word in outcomes:
            if word not in OUTCOMES:
                raise CimlError(f"unknown outcome {word!r:.80}; choose from {', '.join(sorted(OUTCOMES))}")
        times = micros(since, "since"), micros(until, "until")
        selection = RunSelection(_texts(job), outcomes, _texts(source), *times, trusted)
        runs = [run for run in latest_runs(*open_raw(self._root.raw)) if selection.matches(run)]
        return with_label_columns(run_table(runs[::-1]))

    def samples(self, run_id: str) -> pa.Table:
        """Return the telemetry of a stored run, verified by its digest.

        Args:
          run_id: id of the run, as in the column ``run_id`` of `runs`.

        Returns:
          A table in the form of `ciml.parse_log`. It has ``time`` (timestamp[us, UTC]), ``boot`` (bool), and a float64
          column for each column of the log under its full name.

        Raises:
          UnknownRunError: no stored run has this id.
          IntegrityError: the stored telemetry differs from its digest.

        Example:
          >>> failed = data.runs(outcome="failure")["run_id"].to_pylist()
          >>> samples = data.samples(failed[0])
          >>> samples.num_rows, samples.schema.field("time").type
          (60, TimestampType(timestamp[us, tz=UTC]))
          >>> bool(samples.to_pandas()["total cpu usage:usr"].mean() > 60)
          True
        """
        from ciml.runs.reader import read_verified

        file = self._run_files.find(run_id)
        if file is None:
            raise UnknownRunError(f"no stored run has the id {run_id!r:.120}; data.runs() lists the runs")
        return read_verified(self._root.raw, run_id, file)

    def failures(self, *, job: str | Sequence[str] = (), since: Moment | None = None) -> list[FailedRuns]:
        """Return the lines that failed runs share, as ``ciml failures`` does, the one with the latest run first.

        The first call reads the outputs of all failed runs; later calls read those that were stored since.

        Args:
          job: a job or a glob of jobs, or several of them.
          since: lines with a run that ended at or after this time.

        Example:
          >>> [shared.line for shared in data.failures(job="unit", since="2026-11-24T00:00Z")]
          []
        """
        from ciml.verdicts.signatures.failures import failures

        return failures(self._root, since_us=micros(since, "since"), jobs=_texts(job))

    @cached_property
    def _run_files(self) -> RunFiles:
        from ciml.manifest.log import ManifestLog
        from ciml.runs.run_log import RunFiles

        return RunFiles(ManifestLog(self._root.raw))

    def exclude(
        self,
        reason: str,
        *,
        run: str = "",
        job: str = "",
        source: str = "",
        since: Moment | None = None,
        until: Moment | None = None,
        project: str = "",
        branch: str = "",
        owner: str = "",
        change: str = "",
        author: str = "",
    ) -> int:
        """Exclude runs from every later training, as ``ciml exclude`` does. Nothing is deleted.

        Give either ``run``, or one or more of the other criteria; a run must match all of them.

        Args:
          reason: explanation for readers of the list.
          run: a run id.
          job: a job, or a glob of jobs.
          source: name of a source.
          since: runs that ended at or after this time.
          until: runs that began before this time; requires ``since``.
          project: a project, or a glob of projects.
          branch: a branch, or a glob of branches.
          owner: who started the runs.
          change: a change.
          author: who excludes the runs, for readers of the list.

        Returns:
          The number of the exclusion, for `revert_exclusion`.

        Raises:
          CimlError: the criteria are missing or contradict each other.

        Example:
          >>> number = data.exclude("disk was full", run="zuul~7~1")
          >>> len(data.dataset("status"))
          107
          >>> data.revert_exclusion(number)
          >>> len(data.dataset("status"))
          108
        """
        from ciml.training.exclusions import Exclusion, add

        times = micros(since, "since"), micros(until, "until")
        exclusion = Exclusion(reason, run, job, source, *times, project, branch, owner, change)
        (stored,) = add(self._root.exclusions, [exclusion], author=author)
        return stored.id

    def revert_exclusion(self, number: int) -> None:
        """Revert an exclusion: later trainings may learn from its runs again.

        Raises:
          UnknownExclusionError: no exclusion in force has this number.
        """
        from ciml.training.exclusions import revert

        revert(self._root.exclusions, [number])


def _texts(value: str | Sequence[str]) -> Sequence[str]:
    """Return a text as a sequence of one text; "" and an empty sequence mean no criterion."""
    return ([value] if value else []) if isinstance(value, str) else value
