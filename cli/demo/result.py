"""The result of a demo as one JSON document, and its reports: tables on the console, and a self-contained HTML page.

Both reports show the same sections, each of which has a text and one table. The page adds tiles and a plot.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

from msgspec import Struct, field

from ciml.cli.demo.corpus import ONE_NUMBER
from ciml.cli.output import print_table
from ciml.datasets.definition import SPLITS
from ciml.reports.page import Page, Section, Table, Tile
from ciml.reports.page import render as render_page

if TYPE_CHECKING:
    from ciml.reports.drawing import Plot


class AccountingLine(Struct, frozen=True, kw_only=True):
    """The pairs (event, run) of one kind of outcome, reason and damage.

    Attributes:
      kind, reason: see `ciml.events.records.Outcome`.
      trick: the planned damage; "" for none.
      expected: their number by the producer's list.
      counted: their number in the raw manifest.
    """

    kind: str
    reason: str = ""
    trick: str = ""
    expected: int
    counted: int


class SpanLine(Struct, frozen=True, kw_only=True):
    """One span version of a data set: examples by split and by class of their label, and excluded runs by reason."""

    dataset: str
    span: int
    version: int
    splits: dict[str, int]
    classes: dict[str, int]
    excluded: dict[str, int]


class Share(Struct, frozen=True):
    """A share with its 95 % interval."""

    value: float = 0.0
    low: float = 0.0
    high: float = 1.0


class Evaluation(Struct, frozen=True):
    """The evaluation of a model on ``runs`` held-out runs."""

    accuracy: Share = Share()
    base_rate: Share = Share()
    runs: int = 0
    trained_on: int = 0


class SnapshotId(Struct, frozen=True):
    digest: str = ""


class Metrics(Struct, frozen=True):
    """The metrics of a candidate, as far as the demo reads them; all have defaults, for a refresh without a candidate.

    Attributes:
      evaluation: of the candidate.
      snapshot: its training and test runs.
      champion: of the version that was served before, on the same runs.
      baselines: accuracy of single numbers of a run, such as ``duration``, on the same runs; by the number's name.
      disagreement: largest difference of a probability between the exported model and the one in memory; None if
        unknown.
    """

    evaluation: Evaluation = Evaluation()
    snapshot: SnapshotId = SnapshotId()
    champion: Evaluation | None = None
    baselines: dict[str, Share] = {}
    disagreement: float | None = None


class Refresh(Struct, frozen=True):
    """One refresh, as ``ciml refresh --json`` prints it.

    Attributes:
      version: the pushed version; None if the gate rejected the candidate, for ``reasons``.
      seconds: duration by step.
    """

    model: str
    version: int | None
    reasons: list[str]
    seconds: dict[str, float]
    metrics: Metrics

    @property
    def number_accuracy(self) -> Share | None:
        """The accuracy of `ONE_NUMBER` of the model alone, on the same runs; None if it is unknown."""
        return self.metrics.baselines.get(ONE_NUMBER[self.model])


class PredictionLine(Struct, frozen=True, kw_only=True):
    """The predictions of one model, and quantiles of the time from the announcement of a run to its probabilities."""

    model: str
    by_version: dict[str, int]
    untrusted: int = 0
    p50_ms: float
    p99_ms: float


class AnswerLine(Struct, kw_only=True):
    """A failed run of a change in a real Gerrit, and ciml's answer on the change.

    Attributes:
      cause: the recorded cause.
      verdict: ciml's verdict, with its calibrated ``probability``; "" before the prediction.
      silent: the reason for which the policy of feedback posts no message; "" if it posts one, None before the
        prediction.
      took_s: time from the run's event to the message on the change, in seconds; None without a message.
    """

    change: str
    job: str
    outcome: str
    cause: str
    verdict: str = ""
    probability: float | None = None
    silent: str | None = None
    took_s: float | None = None
    messages: list[str] = field(default_factory=list)


class Check(Struct, frozen=True, kw_only=True):
    name: str
    passed: bool
    detail: str = ""


class StepLine(Struct, frozen=True, kw_only=True):
    """One step: its start, counted from the start of the demo, and its duration, in seconds."""

    name: str
    began_s: float
    took_s: float


class DemoResult(Struct, frozen=True, kw_only=True):
    """The result of a demo."""

    started: str
    took_s: float
    engines: dict[str, str]
    runs: int
    messages: int
    accounting: list[AccountingLine] = field(default_factory=list)
    spans: list[SpanLine] = field(default_factory=list)
    refreshes: list[Refresh] = field(default_factory=list)
    predictions: list[PredictionLine] = field(default_factory=list)
    answers: list[AnswerLine] = field(default_factory=list)
    checks: list[Check] = field(default_factory=list)
    steps: list[StepLine] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def passed(self) -> bool:
        """Whether there are checks and all of them passed."""
        return bool(self.checks) and all(check.passed for check in self.checks)


def show(result: DemoResult, console: Any) -> None:
    """Print the tables, the messages on changes, the notes and the checks to a `rich.console.Console`."""

    def plain(text: str, style: str = "") -> None:
        console.print(text, markup=False, highlight=False, style=style)

    for section in _sections(result):
        for table in section.tables:
            right = table.headings[table.words :]
            print_table(table.headings, table.rows, title=section.title, right=right, console=console)
            plain(f"{section.text}\n" if section.text else "")
    for line in result.answers:
        for message in line.messages:
            plain(f"On change {line.change}, {line.took_s} s after the event of its run:\n{message}\n")
    for note in result.notes:
        plain(f"Note: {note}\n")
    for check in result.checks:
        detail = f" ({check.detail})" if check.detail else ""
        plain(f"{_mark(check.passed)} {check.name}{detail}", style="" if check.passed else "bold red")


def render(result: DemoResult) -> str:
    """Return the page, with styles and plots inline, no script and no external address."""
    checks = tuple((_mark(check.passed), check.name, check.detail) for check in result.checks)
    steps = tuple((step.name, f"{step.began_s:.1f}", f"{step.took_s:.1f}") for step in result.steps)
    messages = tuple((line.change, message) for line in result.answers for message in line.messages)
    further_sections = [
        Section("Messages on changes", Table(("change", "message"), messages, words=2)),
        Section("Time by step", Table(("step", "began at, s", "took, s"), steps)),
        Section("Notes", Table(("note",), tuple((note,) for note in result.notes))),
    ]
    sections = (
        Section("Checks", summary(result), Table(("", "check", "detail"), checks, words=3)),
        *_sections(result),
        *_with_rows(further_sections),
    )
    engines = " · ".join(f"{name}: {engine}" for name, engine in result.engines.items())
    lead = (
        f"{result.runs} real runs, {result.messages} events, {result.took_s:.0f} s, started {result.started}. "
        f"{engines}. {summary(result)}"
    )
    return render_page(Page("From CI events to a served model", lead, tuple(_tiles(result)), sections))


def _tiles(result: DemoResult) -> Iterator[Tile]:
    """Yield the headline numbers: the accounting, the accuracy of each model, the predictions and the checks."""
    expected, counted = _sums(result)
    yield Tile("accounted for", f"{counted} of {expected}", "pairs of an event and a run")
    for refresh in last_versions(result):
        evaluation = refresh.metrics.evaluation
        note = f"{_interval(evaluation.accuracy)}; base rate {_percent(evaluation.base_rate)}"
        label = f"{refresh.model} v{refresh.version}" if refresh.version else f"{refresh.model}, not pushed"
        yield Tile(label, _percent(evaluation.accuracy), note)
    predicted = sum(sum(line.by_version.values()) for line in result.predictions)
    medians = ", ".join(f"{line.model} p50 {line.p50_ms:.0f} ms" for line in result.predictions)
    yield Tile("predictions", f"{predicted}", medians)
    passed = sum(check.passed for check in result.checks)
    yield Tile("checks passed", f"{passed} of {len(result.checks)}")


def summary(result: DemoResult) -> str:
    """Return whether all checks passed, as a sentence."""
    failed = sum(not check.passed for check in result.checks)
    if failed:
        return f"{failed} check{'' if failed == 1 else 's'} failed."
    return "Every number adds up." if result.passed else "No check was made."


def last_versions(result: DemoResult) -> list[Refresh]:
    """Return the last refresh of each model that pushed a version, or its last refresh if none did."""
    last = {refresh.model: refresh for refresh in result.refreshes}
    last_pushed = {refresh.model: refresh for refresh in result.refreshes if refresh.version}
    return list({**last, **last_pushed}.values())


def one_number_line(result: DemoResult) -> str:
    """Return the accuracy of `ONE_NUMBER` on the held-out runs of each model's last refresh; "" if unknown."""
    last = {refresh.model: refresh.number_accuracy for refresh in result.refreshes}
    parts = [
        f"{ONE_NUMBER[model]} alone is right for {_percent(accuracy)} ({_interval(accuracy)}) of {model}"
        for model, accuracy in last.items()
        if accuracy is not None
    ]
    return f"On the same held-out runs, {', and '.join(parts)}." if parts else ""


def _sections(result: DemoResult) -> list[Section]:
    """Return the sections that the console and the page share, without those whose table has no rows."""
    return _with_rows([_accounting(result), _spans(result), _models(result), _predictions(result), _answers(result)])


def _with_rows(sections: Iterable[Section]) -> list[Section]:
    return [section for section in sections if section.tables[0].rows]


def _accounting(result: DemoResult) -> Section:
    lines = [(line.kind, line.reason, line.trick, line.expected, line.counted) for line in result.accounting]
    lines += [("all", "", "", *_sums(result))] if lines else []
    rows = tuple(
        (
            kind.replace("_", " "),
            reason.replace("_", " "),
            trick,
            f"{expected}",
            f"{counted}",
            _mark(expected == counted),
        )
        for kind, reason, trick, expected, counted in lines
    )
    headings = ("kind", "reason", "damaged on purpose", "expected", "counted", "")
    text = "Expected: in the producer's list of acknowledged messages. Counted: in the manifest of the raw store."
    return Section("Outcomes of all (event, run) pairs", text, Table(headings, rows, words=3))


def _spans(result: DemoResult) -> Section:
    rows = []
    for line in result.spans:
        version = f"{line.span}" + (f" v{line.version}" if line.version > 1 else "")
        texts = (_counts(line.classes), _counts(line.excluded))
        rows.append((line.dataset, *texts, version, *(f"{line.splits.get(split, 0)}" for split in SPLITS)))
    headings = ("data set", "classes", "excluded", "span", *SPLITS)
    return Section("Spans", Table(headings, tuple(rows), words=3))


def _models(result: DemoResult) -> Section:
    rows = []
    for number, refresh in _numbered(result.refreshes):
        metrics = refresh.metrics
        evaluation = metrics.evaluation
        accuracy = evaluation.accuracy
        decision = f"pushed as v{refresh.version}" if refresh.version else f"rejected: {'; '.join(refresh.reasons)}"
        rows.append(
            (
                refresh.model,
                decision,
                f"{number}",
                f"{evaluation.trained_on}",
                f"{evaluation.runs}",
                f"{_percent(accuracy)} ({_interval(accuracy)})",
                _percent(metrics.champion.accuracy if metrics.champion else None),
                _percent(evaluation.base_rate),
                _percent(refresh.number_accuracy),
            )
        )
    headings = ("model", "decision", "refresh", "trained", "tested", "accuracy", "champion", "base rate", "one number")
    table = Table(headings, tuple(rows), words=2)
    return Section("Models, on held-out runs", one_number_line(result), table, _accuracy_plot(result) if rows else None)


def _accuracy_plot(result: DemoResult) -> Plot:
    from ciml.reports.drawing import Estimate
    from ciml.reports.experiments.plots import bars_plot
    from ciml.reports.experiments.views import ALONE, Bar

    bars = []
    for number, refresh in _numbered(result.refreshes):
        evaluation = refresh.metrics.evaluation
        accuracy = evaluation.accuracy
        baselines = {"base rate": evaluation.base_rate.value}
        baselines |= {f"{name}{ALONE}": share.value for name, share in refresh.metrics.baselines.items()}
        estimate = Estimate(accuracy.value, accuracy.low, accuracy.high)
        bars.append(Bar(f"{refresh.model} {number}", estimate, evaluation.runs, baselines))
    caption = "A mark is a baseline on the same runs: the commonest class in training, or one number of a run."
    return bars_plot("refreshes", "Accuracy on held-out runs, by refresh", caption, "accuracy (%)", [("", bars)])


def _numbered(refreshes: list[Refresh]) -> Iterator[tuple[int, Refresh]]:
    """Yield each refresh with its number among those of its model, from 1."""
    numbers: Counter[str] = Counter()
    for refresh in refreshes:
        numbers[refresh.model] += 1
        yield numbers[refresh.model], refresh


def _predictions(result: DemoResult) -> Section:
    rows = []
    for line in result.predictions:
        versions = _counts({f"v{version}": count for version, count in line.by_version.items()})
        numbers = (sum(line.by_version.values()), line.untrusted, line.p50_ms, line.p99_ms)
        rows.append((line.model, versions, *(f"{number:,.0f}" for number in numbers)))
    headings = ("model", "by version", "all", "of untrusted", "p50 ms", "p99 ms")
    text = "Latency is the time from the announcement of a run to its probabilities, before they are stored."
    return Section("Predictions", text, Table(headings, tuple(rows), words=2))


def _answers(result: DemoResult) -> Section:
    rows = []
    for line in result.answers:
        verdict = line.verdict if line.probability is None else f"{line.verdict}, {100 * line.probability:.1f} %"
        message = f"no message: {line.silent}" if line.took_s is None else f"{line.took_s:.1f} s"
        rows.append((line.change, line.job, line.outcome, line.cause, verdict, message))
    headings = ("change", "job", "outcome", "recorded cause", "verdict", "message after")
    text = "Failed runs that no training has seen, each on its own change of a real Gerrit." if rows else ""
    return Section("Answers on changes", text, Table(headings, tuple(rows), words=6))


def _sums(result: DemoResult) -> tuple[int, int]:
    return sum(line.expected for line in result.accounting), sum(line.counted for line in result.accounting)


def _counts(counts: dict[str, int]) -> str:
    return ", ".join(f"{name}: {count}" for name, count in counts.items())


def _mark(passed: bool) -> str:
    return "✓" if passed else "✗"


def _percent(share: Share | None) -> str:
    return "–" if share is None else f"{100 * share.value:.1f} %"


def _interval(share: Share) -> str:
    return f"{100 * share.low:.1f}–{100 * share.high:.1f}"
