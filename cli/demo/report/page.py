"""The report as one self-contained HTML page."""

from __future__ import annotations

from importlib.resources import files
from typing import Any

from ciml.cli.demo.report.plots import draw
from ciml.cli.demo.report.result import DemoResult, VersionLine
from ciml.reports.page import page_environment


def render(result: DemoResult) -> str:
    """Return the page, with styles, plots and figures inline, no script and no external address."""
    from markupsafe import Markup

    environment = page_environment(
        percent=lambda value: f"{100 * value:.1f} %", words=lambda text: text.replace("_", " ")
    )
    template = environment.from_string(
        files("ciml.cli.demo.report").joinpath("report.html").read_text(encoding="utf-8")
    )
    plots = {name: Markup(svg) for name, svg in draw(result).items()}  # noqa: S704 (drawn here, and escaped by matplotlib)
    return template.render(result=result, plots=plots, last=last_versions(result), **_totals(result))


def last_versions(result: DemoResult) -> list[VersionLine]:
    """Return the newest pushed version of each model, or its last refresh if none was pushed."""
    last: dict[str, VersionLine] = {}
    for line in result.versions:
        if line.verdict == "pushed" or line.model not in last or last[line.model].verdict != "pushed":
            last[line.model] = line
    return list(last.values())


def _totals(result: DemoResult) -> dict[str, Any]:
    return {
        "expected": sum(line.expected for line in result.accounting),
        "counted": sum(line.counted for line in result.accounting),
        "predicted": sum(sum(line.by_version.values()) for line in result.predictions),
        "red": [check for check in result.checks if not check.passed],
    }
