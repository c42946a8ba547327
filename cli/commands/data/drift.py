"""``ciml drift``: changes in the distribution of a data set."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

from ciml.cli.command import make_command
from ciml.cli.options import Data, Json
from ciml.cli.output import print_lines, print_table
from ciml.options import argument, option, repeated

if TYPE_CHECKING:
    from ciml.transforms.drift.compare import Finding, Report

#: Exit code for drift: the stored data is intact, and a script can react.
DRIFT = 5
#: Kinds of findings; of some, the values are shares of runs.
_KINDS = ("lost_column", "new_column", "unit", "shift", "lost_group", "new_group", "mix")
_AGGREGATED = re.compile(r"(\w+)\((.+)\)")
#: Number of added or lost groups of a fact above which they are one row.
_FEW_GROUPS = 3
_SHARES = ("lost_column", "new_column", "lost_group", "new_group", "mix")


class DriftOptions(Data, Json):
    """Options of ``ciml drift``.

    Attributes:
      last: Number of newest spans to test. [default: 1; with --model all new ones]
      against: Data set to compare with. [default: the earlier spans]
      model: Model whose champion's training runs are the reference.
      psi: PSI from which a distribution has drifted; from 2.5 times this the drift is large.
      min_runs: Minimum runs on each side to test a job or provider.
      allow: Kind of findings that does not set exit code 5; may be repeated.
      json: JSON output, with the measures of each finding.
    """

    name: str = argument()
    last: int | None = option(kind="count", metavar="N")
    against: str | None = option(metavar="NAME")
    model: str | None = option(metavar="MODEL")
    psi: float = option(0.1, click.FloatRange(min=0, min_open=True))
    min_runs: int = option(30, click.IntRange(min=2))
    allow: tuple[str, ...] = repeated(click.Choice(_KINDS))


@make_command("drift")
def command(options: DriftOptions) -> int:
    """Detect data drift.

    It compares the newest spans of the data set NAME with the earlier ones, for each job and provider. Findings are
    new or lost columns, changed units, shifted distributions and, separately, a changed mix of jobs, providers,
    flavours and classes. PSI measures the size of a shift, KS its significance.

    \b
    Example:
      ciml drift cpu-load --data-path DATA
      ciml drift cpu-load --last 5 --allow mix --json --data-path DATA
      ciml drift cpu-load --against cpu-load-2025 --data-path DATA
      ciml drift cpu-load --model cpu-load --data-path DATA

    Exit codes: 0 no drift or too few runs; 5 drift; 2 wrong use or nothing to compare with; 3 a store does not answer;
    4 stored data is inconsistent.
    """
    from ciml.cli.output import progress_bar
    from ciml.pipelines.datasets.validate import validate_dataset
    from ciml.transforms.drift.compare import Report
    from ciml.transforms.drift.detect import DriftPolicy

    if options.against is not None and options.model is not None:
        raise click.UsageError("--against and --model exclude each other: give one")
    with progress_bar("spans") as progress:
        report = validate_dataset(
            options.root,
            options.name,
            last=options.last,
            against=options.against,
            model=options.model,
            policy=DriftPolicy(psi=options.psi, psi_large=2.5 * options.psi, min_runs=options.min_runs),
            progress=progress,
        )
    options.show(report, _print_report, Report.to_json)
    return DRIFT if any(finding.kind not in options.allow for finding in report.findings) else 0


def _print_report(report: Report) -> None:
    before, after = (
        f"{side.name} ({int(side.statistics.runs.sum()):,} runs)" for side in (report.before, report.after)
    )
    title = f"{before} → {after}"
    if report.findings:
        numbers = ["runs", "from → to", "PSI", "KS"]
        rows = [_row(group[0], group[1:]) for group in _grouped_by_cause(report.findings)]
        print_table(["what", "job", "provider", *numbers, "verdict"], rows, title=title, right=numbers)
    else:
        click.echo(title)
    print_lines(_notes(report))


def _grouped_by_cause(findings: Sequence[Finding]) -> list[list[Finding]]:
    """Return the findings in groups of one cause, the clearest first.

    A group is: aggregations of one feature that shifted in the same slice; many groups that were added or lost.
    """
    counts = Counter((finding.kind, finding.what) for finding in findings)
    groups: dict[object, list[Finding]] = {}
    for number, finding in enumerate(findings):
        key: object = number  # of a finding that is a group of its own
        if finding.kind in ("lost_group", "new_group") and counts[finding.kind, finding.what] > _FEW_GROUPS:
            key = finding.kind, finding.what
        elif finding.kind in ("unit", "shift") and (aggregated := _AGGREGATED.fullmatch(finding.what)):
            key = finding.kind, aggregated[2], finding.build_name, finding.provider, finding.rest
        groups.setdefault(key, []).append(finding)
    for group in groups.values():
        group.sort(key=lambda finding: (-(finding.ks or 0), -finding.runs_before - finding.runs_after))
    return list(groups.values())


def _row(finding: Finding, others: Sequence[Finding]) -> list[str]:
    """Return the cells of the first finding of a group, whose verdict names the others."""
    every = "all others" if finding.rest else "all"
    style = "{:.1%}" if finding.kind in _SHARES else "{:.3g}"
    more = ""
    if others and finding.kind in ("lost_group", "new_group"):
        more = f", and {len(others)} more"
    elif others:
        more = f"; also {', '.join(aggregation.what.partition('(')[0] for aggregation in others)}"
    return [
        finding.what,
        every if finding.build_name is None else finding.build_name,
        every if finding.provider is None else finding.provider,
        f"{finding.runs_before:,} → {finding.runs_after:,}",
        f"{style.format(finding.before)} → {style.format(finding.after)}",
        "" if finding.psi is None else f"{finding.psi:.2f}",
        "" if finding.ks is None else f"{finding.ks:.2f}",
        finding.verdict + ("" if finding.since is None else f" since span {finding.since}") + more,
    ]


def _feature_names(names: Sequence[str]) -> list[str]:
    """Return names of features, an aggregation as the feature's name."""
    matches = (_AGGREGATED.fullmatch(name) for name in names)
    return list(dict.fromkeys(match[2] if match else name for match, name in zip(matches, names, strict=True)))


def _notes(report: Report) -> list[str]:
    lines = []
    if not report.enough:
        lines.append(f"too few runs: {report.policy.min_runs} needed on both sides")
    elif not report.measures:
        lines.append("no feature is on both sides")
    elif not report.findings:
        lines.append(f"no drift, by {report.tests:,} tests")
    drifted = set(_feature_names([finding.what for finding in report.findings]))
    if mixed := [name for name in _feature_names(report.with_the_mix) if name not in drifted]:
        lines.append(f"drift explained by the mix of runs: {', '.join(mixed)}")
    if undecided := ", ".join(_feature_names(report.undecided)):
        lines.append(f"drift, with too few comparable runs to rule out the mix: {undecided}")
    narrow = [part for part in report.small_slices if part != (None, None) and None in part]
    if report.enough and narrow:
        lines.append(f"too few runs to test {len(narrow)} jobs and providers separately")
    if report.before.columns is None:
        lines.append("no raw store in the data path: columns of the runs are unknown")
    return lines
