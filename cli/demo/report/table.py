"""The tables at the end of the demo."""

from __future__ import annotations

from typing import Any

from ciml.cli.demo.report.result import DemoResult


def show(result: DemoResult, console: Any) -> None:
    """Print accounting, spans, models, predictions and checks."""
    for table in (
        _accounting(result),
        _spoilt(result),
        _spans(result),
        _models(result),
        _predictions(result),
        _answers(result),
    ):
        if table.row_count:
            console.print(table)
            console.print()
        if table.title == _MODELS and (line := result.one_number_line()):
            console.print(line, markup=False, highlight=False)
            console.print()
    for answer in result.answers:
        for message in answer.messages:
            console.print(
                f"On change {answer.change}, {answer.took_s} s after the message of its run:", highlight=False
            )
            console.print(message, markup=False, highlight=False)
            console.print()
    for note in result.notes:
        console.print(f"Note: {note}", markup=False, highlight=False)
        console.print()
    for check in result.checks:
        mark, color = ("✓", "green") if check.passed else ("✗", "bold red")
        console.print(f"[{color}]{mark}[/] ", end="")
        console.print(
            f"{check.name}" + (f" ({check.detail})" if check.detail else ""),
            markup=False,
            highlight=False,
            style="" if check.passed else "red",
        )


_MODELS = "Models, on held-out runs"
#: Columns that never wrap.
_NO_WRAP = ("model", "data set", "(95 %)", "")


def _table(title: str, *columns: str) -> Any:
    """Return a table; a column whose name begins with > is aligned to the right."""
    from rich import box
    from rich.table import Table

    table = Table(title=title, box=box.SIMPLE_HEAD, title_justify="left", title_style="bold", pad_edge=False)
    for name in columns:
        table.add_column(
            name.lstrip(">"),
            justify="right" if name.startswith(">") else "left",
            no_wrap=name.startswith(">") or name in _NO_WRAP,
        )
    return table


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.1f} %"


def _accounting(result: DemoResult) -> Any:
    table = _table("Outcomes of all (event, run) pairs", "class", "reason", ">expected", ">counted", "")
    for line in result.accounting:
        same = line.expected == line.counted
        table.add_row(
            line.kind.replace("_", " "),
            line.reason.replace("_", " "),
            str(line.expected),
            str(line.counted),
            "[green]✓[/]" if same else "[bold red]✗[/]",
        )
    if result.accounting:
        table.add_section()
        expected, counted = (sum(getattr(line, name) for line in result.accounting) for name in ("expected", "counted"))
        table.add_row(
            "all", "", str(expected), str(counted), "[green]✓[/]" if expected == counted else "[bold red]✗[/]"
        )
    return table


def _spoilt(result: DemoResult) -> Any:
    table = _table("Damaged on purpose", "damage", ">messages", "outcome")
    for line in result.spoilt:
        table.add_row(line.trick, str(line.messages), line.became.replace("_", " "))
    return table


def _spans(result: DemoResult) -> Any:
    classes = sorted({name for line in result.spans for name in line.classes})
    table = _table("Spans", "data set", ">span", ">train", ">test", *(f">{name}" for name in classes))
    for line in result.spans:
        table.add_row(
            line.dataset,
            f"{line.span}" + (f" v{line.version}" if line.version > 1 else ""),
            str(line.splits.get("train", 0)),
            str(line.splits.get("test", 0)),
            *(str(line.classes.get(name, 0)) for name in classes),
        )
    for exclusion in result.exclusions:
        table.add_row(exclusion.dataset, "–", f"excluded: {exclusion.reason}", str(exclusion.runs))
    return table


def _models(result: DemoResult) -> Any:
    table = _table(
        _MODELS,
        *("model", ">", ">trained", ">tested", ">accuracy", "(95 %)", ">champion", ">base", ">one number", "decision"),
    )
    for number, line in enumerate(result.versions):
        refresh = sum(one.model == line.model for one in result.versions[: number + 1])
        table.add_row(
            line.model,
            str(refresh),
            str(line.trained),
            str(line.tested),
            f"[bold]{_percent(line.accuracy)}[/]",
            f"{100 * line.low:.1f}–{100 * line.high:.1f}",
            _percent(line.champion),
            _percent(line.base_rate),
            _percent(line.one_number),
            f"[green]pushed as v{line.version}[/]" if line.verdict == "pushed" else f"kept: {line.why}",
        )
    return table


def _predictions(result: DemoResult) -> Any:
    table = _table("Predictions", "model", "by version", ">all", ">of untrusted", ">p50 ms", ">p99 ms")
    for line in result.predictions:
        table.add_row(
            line.model,
            ", ".join(f"v{version}: {count}" for version, count in line.by_version.items()),
            str(sum(line.by_version.values())),
            str(line.untrusted),
            f"{line.p50_ms:,.0f}",
            f"{line.p99_ms:,.0f}",
        )
    return table


def _answers(result: DemoResult) -> Any:
    table = _table(
        "Failed runs of changes in Gerrit", ">change", "job", "outcome", "recorded cause", "verdict", "message after"
    )
    for line in result.answers:
        table.add_row(
            line.change,
            line.job,
            line.outcome,
            line.cause,
            line.verdict + (f", {_percent(line.probability)}" if line.probability is not None else ""),
            f"no message: {line.silent}" if line.took_s is None else f"{line.took_s:.1f} s",
        )
    return table
