"""The report of a load: the meaning of the table's columns, and the outcomes of its rows, for programs and as text."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from ciml.errors import CimlError
from ciml.events.records import COMPLETES, KIND_WORDS, totals_of
from ciml.runs.run_log import Settled
from ciml.transforms.results.columns import Columns, Suggestion
from ciml.transforms.results.convert import REASONS, BadRow

if TYPE_CHECKING:
    from ciml.pipelines.backfill.plan import Tally
    from ciml.pipelines.backfill.survey import Survey

_MANNERS = {"given": "as given", "name": "by its name", "content": "by its values"}
_EXAMPLES = 3  # rows that a report shows for each reason
#: Reasons of missing logs, in addition to those of rows, with their remedies.
MISSING: Mapping[str, str] = {
    "log_not_found": "copy the logs there, or name as LOGS the folder that the paths begin in",
    "address_not_allowed": "name files below LOGS, not their folders; no symlink may lead out",
    "log_unavailable": "let this user read the logs",
    "bad_address": "shorten the path",
}


class UnusableRows(NamedTuple):
    """The unusable rows of one reason: their number, the first of them, and what to do."""

    reason: str
    number: int
    examples: list[BadRow]
    remedy: str


@dataclass(repr=False)
class LoadReport:
    """The result of a load, or of its survey alone. Its text is the output of ``ciml load``.

    The survey counts each row once: in ``bad``, ``not_selected``, ``before``, ``good`` or ``missing``. A complete load
    has counted the rows of ``good`` and ``missing`` again, in ``totals``.

    Attributes:
      table, form: the table's name and format.
      columns: the meaning of the table's columns.
      suggestions: mappings of columns that became labels, for fields that no column was found for.
      rows: rows of the table.
      bad: rows that cannot be loaded, by reason.
      missing: rows whose logs cannot be opened, by reason. Loaded, they are dead letters.
      good: rows that a load would settle as runs, repeats, corrections or ignored.
      before: rows that an earlier load of the same table settled.
      not_selected: rows of other jobs.
      known: of the good rows, those whose runs are stored: repeats or corrections.
      untrusted: of the good and missing rows, those that no rule of the trust policy trusts. Of ``before``, it counts
        those that none trusted when they were stored.
      completed: rows whose stored runs lack a fact that the table has, by fact. A load completes them by reclaims.
      completed_runs: the number of stored runs that the load completed.
      differing: rows whose stored runs contradict the table, by fact. The stored value is kept.
      earlier: the outcomes of the rows of ``before``.
      examples: the first bad rows of each reason, in order.
      totals: number of outcomes by `ciml.events.records.Kind`; all 0 before a load.
      dead_letters: rows that are open dead letters, by reason, including those of an earlier load of the same table.
      complete: whether all selected rows are settled.
    """

    table: str
    form: str
    columns: Columns
    suggestions: tuple[Suggestion, ...] = ()
    rows: int = 0
    bad: Counter[str] = field(default_factory=Counter)
    missing: Counter[str] = field(default_factory=Counter)
    good: int = 0
    before: int = 0
    not_selected: int = 0
    known: int = 0
    untrusted: int = 0
    completed: Counter[str] = field(default_factory=Counter)
    completed_runs: int = 0
    differing: Counter[str] = field(default_factory=Counter)
    earlier: Settled = field(default_factory=lambda: Settled(Counter()))
    examples: list[BadRow] = field(default_factory=list)
    totals: dict[str, int] = field(default_factory=lambda: totals_of({}))
    dead_letters: Counter[str] = field(default_factory=Counter)
    complete: bool = False

    @property
    def unusable(self) -> int:
        """The number of rows that are bad, or whose logs are missing."""
        return self.bad.total() + self.missing.total()

    def count_unusable(self, row: BadRow, counter: Counter[str]) -> None:
        """Count a row in ``bad`` or ``missing``, and keep it as an example if it is among the first of its reason."""
        if counter[row.reason] < _EXAMPLES:
            self.examples.append(row)
        counter[row.reason] += 1

    def count_survey(self, surveyed: Survey, row_numbers: Sequence[int]) -> None:
        """Count the rows of the listing as the survey describes them.

        Args:
          surveyed: the survey.
          row_numbers: the number of the row of each line.
        """
        column = self.columns.theirs("log_path")
        for missing in surveyed.missing:
            self.count_unusable(
                BadRow(row_numbers[missing.line], missing.reason, column, missing.where, ""), self.missing
            )
        self.before = surveyed.settled
        self.not_selected = surveyed.others
        self.known = surveyed.known
        self.good = surveyed.lines - surveyed.settled - surveyed.others - len(surveyed.missing)
        untrusted = sum(count for (trusted, _), count in surveyed.trust.items() if not trusted)
        self.untrusted = untrusted + self.earlier.untrusted

    def count_outcomes(self, tally: Tally) -> None:
        """Count the outcomes of the rows in the backfill."""
        self.totals = tally.totals()
        self.complete = tally.complete
        self.completed_runs = tally.counts["reclaim", COMPLETES]
        if not self.completed_runs:  # stopped before it completed any
            self.completed.clear()
        for (kind, reason), count in tally.counts.items():
            if kind == "dead_letter":
                self.dead_letters[reason] += count

    def reasons(self) -> list[UnusableRows]:
        """Return the unusable rows of each reason, the most frequent first."""
        remedies = {**REASONS, **MISSING}
        return [
            UnusableRows(
                reason, count, [row for row in self.examples if row.reason == reason], remedies.get(reason, "")
            )
            for reason, count in (self.bad + self.missing).most_common()
        ]

    def column_lines(self) -> list[str]:
        """Return the table's name, size and form, and the meaning of each column, as text."""
        lines = [f"{self.table}: {self.rows:,} rows, {self.form}"]
        lines += [
            f"  {ours:<13} is column {theirs} ({_MANNERS[manner]})" for ours, theirs, manner in self.columns.guesses
        ]
        for word, names in (("labels", self.columns.labels), ("left out", self.columns.left_out)):
            if names:
                lines.append(f"  {word:<13} {', '.join(name or '(no name)' for name in names)}")
        if self.columns.not_found:
            lines.append(f"  {'not found':<13} {', '.join(self.columns.not_found)}")
        lines += [
            f"  {'suggestion':<13} {suggestion.option} (column {suggestion.theirs} {suggestion.why})"
            for suggestion in self.suggestions
        ]
        for name in ("start_time", "end_time"):
            if name in self.columns.not_found:
                lines.append(f"Without {name} runs have no duration, so no model is compared with it.")
                break
        return lines

    def fact_lines(self) -> list[str]:
        """Return which facts of stored runs the table completes, or contradicts, as text."""
        verb = "completes" if self.completed_runs else "would complete"
        lines = [f"{name} {verb} {count:,} stored runs." for name, count in sorted(self.completed.items())]
        lines += [
            f"{name} differs from that of {count:,} stored runs, which stays."
            for name, count in sorted(self.differing.items())
        ]
        return lines

    def counts_line(self) -> str:
        """Describe the outcomes of the rows, or those that a load would have."""
        settled = any(self.totals.values()) or self.complete
        if settled:
            totals = {**self.totals, "reclaim": self.totals["reclaim"] - self.completed_runs}
            counts = [(totals[kind], word) for kind, word in KIND_WORDS.items()]
        else:
            counts = [(self.good, "rows would be loaded"), (self.known, "of stored runs")]
        counts += [
            (self.completed_runs, "completed runs"),
            (self.before, f"loaded before{self._earlier()}"),
            (self.bad.total(), "bad rows left out"),
            (self.not_selected, "of other jobs"),
        ]
        parts = [f"{count:,} {word}" for count, word in counts if count] or ["0 rows"]
        return ", ".join(parts) + ("." if settled else "; nothing was done.")

    def _earlier(self) -> str:
        """Describe the outcomes of the rows that were loaded before, unless all are stored runs."""
        counts = {kind: count for kind, count in self.earlier.counts.items() if count and kind != "dead_letter"}
        parts = [f"{count:,} {KIND_WORDS[kind]}" for kind, count in counts.items()]
        open_dead_letters = self.dead_letters.total() - self.totals["dead_letter"]
        if open_dead_letters:
            parts.append(f"{open_dead_letters:,} {KIND_WORDS['dead_letter']}")
        return f" ({', '.join(parts)})" if len(parts) > 1 else ""

    def __repr__(self) -> str:
        reasons = map(_reason_line, self.reasons())
        return "\n".join([*self.column_lines(), *reasons, self.counts_line(), *self.fact_lines()])

    def to_json(self) -> dict[str, Any]:
        """Return the report as JSON values."""
        columns = self.columns
        return {
            **vars(self),
            "columns": [guess._asdict() for guess in columns.guesses],
            "labels": list(columns.labels),
            "left_out": list(columns.left_out),
            "not_found": list(columns.not_found),
            "suggestions": [suggestion._asdict() for suggestion in self.suggestions],
            "earlier": {kind: count for kind, count in self.earlier.counts.items() if count},
            "examples": [row._asdict() for row in self.examples],
        }


class RejectedTableError(CimlError):
    """A table that was rejected as a whole, since too many of its rows are unusable.

    Its text is the summary, followed by a line per reason.

    Attributes:
      summary: the first line.
      report: counts and examples.
    """

    def __init__(self, summary: str, report: LoadReport) -> None:
        self.summary = summary
        self.report = report
        super().__init__("\n".join([summary, *map(_reason_line, report.reasons())]))


def _reason_line(rows: UnusableRows) -> str:
    first = rows.examples[0]
    where = f"row {first.number:,}" + (f", column {first.column:.60}" if first.column else "")
    fault = ": ".join(part for part in (where, first.value, first.detail) if part)
    return f"  {rows.number:,} {rows.reason}: {rows.remedy} ({fault})"
