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


def test_the_page_needs_nothing_but_itself(page: str) -> None:
    assert "<script" not in page
    assert not re.search(r"""(?:src|href)\s*=\s*["'](?!#)""", page)
    assert not re.search(r"url\((?!#)", page)


def test_the_page_shows_the_result(page: str) -> None:
    assert "Every number adds up" in page
    assert "826 of 826" in page
    assert "87.0 %" in page
    assert "81.0–92.0" in page
    assert "accuracy 0.600 is below the champion&#39;s 0.620" in page
    assert all(name in page for name in CLASSES)


def test_what_was_said_on_changes_is_shown_and_inert(page: str) -> None:
    assert "93.0 %" in page
    assert "6.4 s" in page
    assert "Probability &lt;93 %&gt;." in page
    assert "Answers on changes" not in render(demo_result(answers=[]))


def test_the_page_is_the_same_every_time_and_its_plot_is_well_formed(page: str) -> None:
    assert render(demo_result()) == page
    (svg,) = re.findall(r"<svg.*?</svg>", page, re.DOTALL)
    ElementTree.fromstring(svg)


def test_a_failed_check_is_seen_at_once() -> None:
    checks = [Check(name="good", passed=True), Check(name="accounting", passed=False, detail="<b>lost</b>")]
    page = render(demo_result(checks=checks, accounting=[AccountingLine(kind="run", expected=2, counted=1)]))
    assert "Every number adds up" not in page
    assert "1 check failed" in page
    assert "&lt;b&gt;lost&lt;/b&gt;" in page
    assert "1 of 2" in page


def test_a_result_without_checks_has_not_passed() -> None:
    result = DemoResult(started="now", took_s=0, engines={}, runs=0, messages=0)
    assert not result.passed
    assert "No check was made" in render(result)


def test_the_last_version_is_the_pushed_one() -> None:
    lines = [
        refreshed("status", 1, 0.5),
        refreshed("status", 2, 0.4, "worse"),
        refreshed("pool", 1, 0.3, "worse"),
        refreshed("pool", 2, 0.2, "worse"),
    ]
    assert last_versions(demo_result(refreshes=lines)) == [lines[0], lines[3]]


def test_a_model_without_a_version_has_none_on_its_tile() -> None:
    page = render(demo_result(refreshes=[refreshed("status", 1, 0.5), refreshed("pool", 1, 0.3, "worse")]))
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


def test_the_latency_is_described_as_it_is_measured(page: str) -> None:
    assert "from the announcement of a run to its probabilities, before they are stored" in page


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
