"""The report: one page that needs nothing but itself, and says what the result says."""

from __future__ import annotations

import re
from pathlib import Path
from xml.etree import ElementTree

import msgspec
import pytest
from click.testing import CliRunner

from ciml.cli.demo import report
from ciml.cli.demo.result import AccountingLine, Check, DemoResult, Share, last_versions, one_number_line, render
from ciml.errors import CimlError
from tests.cli.demo.demo_fixture import CLASSES, demo_result, refreshed


@pytest.fixture(scope="module")
def page() -> str:
    return render(demo_result())


def test_the_page_needs_nothing_but_itself_and_shows_the_result(page: str) -> None:
    assert "<script" not in page
    assert not re.search(r"""(?:src|href)\s*=\s*["'](?!#)""", page)
    assert not re.search(r"url\((?!#)", page)
    shown = (
        "Every number adds up", "826 of 826", "87.0 %", "81.0–92.0", "93.0 %", "6.4 s", "Probability &lt;93 %&gt;.",
        "accuracy 0.600 is below the champion&#39;s 0.620", *CLASSES,
        "from the announcement of a run to its probabilities, before they are stored",
    )  # fmt: skip
    assert [text for text in shown if text not in page] == []
    assert "Answers on changes" not in render(demo_result(answers=[]))
    assert render(demo_result()) == page
    (svg,) = re.findall(r"<svg.*?</svg>", page, re.DOTALL)
    ElementTree.fromstring(svg)


def test_a_failed_check_is_seen_at_once() -> None:
    checks = [Check(name="good", passed=True), Check(name="accounting", passed=False, detail="<b>lost</b>")]
    page = render(demo_result(checks=checks, accounting=[AccountingLine(kind="run", expected=2, counted=1)]))
    assert "Every number adds up" not in page
    assert [text for text in ("1 check failed", "&lt;b&gt;lost&lt;/b&gt;", "1 of 2") if text not in page] == []
    empty = DemoResult(started="now", took_s=0, engines={}, runs=0, messages=0)
    assert not empty.passed
    assert "No check was made" in render(empty)


def test_the_last_version_is_the_pushed_one() -> None:
    pushed, rejected = refreshed("status", 1, 0.5), refreshed("pool", 2, 0.2, "worse")
    lines = [pushed, refreshed("status", 2, 0.4, "worse"), refreshed("pool", 1, 0.3, "worse"), rejected]
    result = demo_result(refreshes=lines)
    assert last_versions(result) == [pushed, rejected]
    page = render(result)
    assert "status v1" in page
    assert "pool, not pushed" in page
    assert "None" not in page


def test_one_number_is_that_of_the_last_refresh_of_each_model() -> None:
    lines = [refreshed("status", 1, 0.8), refreshed("pool", 1, 0.7), refreshed("status", 2, 0.9, baseline="duration")]
    assert one_number_line(demo_result(refreshes=lines)) == (
        "On the same held-out runs, duration alone is right for 31.0 % (25.0–37.5) of status, "
        "and memory alone is right for 31.0 % (25.0–37.5) of pool."
    )
    assert one_number_line(demo_result(refreshes=[])) == ""


def test_one_number_is_that_of_the_data_set_whatever_the_order_of_the_keys() -> None:
    both = {"duration": Share(0.5), "memory": Share(0.31, 0.25, 0.375)}  # sorted, as `ciml refresh --json` prints them
    line = refreshed("pool", 1, 0.7)
    metrics = msgspec.structs.replace(line.metrics, baselines=both)
    result = demo_result(refreshes=[msgspec.structs.replace(line, metrics=metrics)])
    assert "memory alone is right for 31.0 % (25.0–37.5) of pool" in one_number_line(result)
    assert "31.0 %" in render(result)


def test_a_report_is_rendered_from_the_result(tmp_path: Path) -> None:
    (tmp_path / "demo").mkdir()
    (tmp_path / "demo" / "result.json").write_bytes(msgspec.json.encode(demo_result()))
    done = CliRunner().invoke(report, ["--data-path", str(tmp_path)])
    assert (done.exit_code, done.output) == (0, f"{tmp_path}/demo/report.html\n")
    assert (tmp_path / "demo" / "report.html").read_text() == render(demo_result())
    other = tmp_path / "other.html"
    assert CliRunner().invoke(report, ["--data-path", str(tmp_path), "--output", str(other)]).exit_code == 0
    assert other.read_text() == render(demo_result())


def test_a_folder_without_a_result_is_named(tmp_path: Path) -> None:
    done = CliRunner().invoke(report, ["--data-path", str(tmp_path)])
    assert isinstance(done.exception, CimlError)
    assert "run ciml demo" in str(done.exception)
