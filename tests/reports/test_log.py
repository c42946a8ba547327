"""``ciml plot FILE``: one log as plots, its samples as they were recorded."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result

from ciml.cli.main import cli
from ciml.reports.dataset.log import MOST_POINTS, _stride, _thinned, log_page
from ciml.reports.page import render
from tests.reports.test_plot import self_contained
from tests.transforms.samples import table

GOLDEN = Path(__file__).parents[1] / "golden" / "telemetry"


def plot(*words: str, code: int = 0) -> Result:
    done = CliRunner().invoke(cli, ["plot", *words])
    assert done.exit_code == code, done.output
    return done


@pytest.mark.parametrize("name", ["dool.log", "no-time.log"])
def test_a_log_is_drawn_from_its_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv("CIML_DATA_PATH", str(tmp_path / "none"))
    out = tmp_path / "out"
    few = ("--features-regex", "usr|1min")
    assert plot(str(GOLDEN / name), "--output", str(out), *few).output == f"{out}/index.html\n"
    page = (out / "index.html").read_text()
    assert f"Log {name}" in page
    self_contained(page)
    assert (out / "log-001.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("words", [["--seed", "1"], ["--data-path", "{data}"]])
def test_a_log_has_no_seed_and_no_data_path(tmp_path: Path, words: list[str]) -> None:
    (tmp_path / "kept").touch()
    words = [word.format(data=tmp_path) for word in words]
    done = plot(str(GOLDEN / "dool.log"), "--output", str(tmp_path / "out"), *words, code=2)
    assert f"{words[0]}: of a data set" in done.output


def test_gzip_and_the_default_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("dstat-csv_log.txt.gz").write_bytes(gzip.compress((GOLDEN / "dool.log").read_bytes()))
    printed = plot("dstat-csv_log.txt.gz", "--features-regex", "1min").output
    assert printed.strip().endswith("dstat-csv_log-plots/index.html")


def test_the_page_has_the_figures_of_the_samples() -> None:
    times = [1_795_600_000_000_000 + 1_000_000 * second for second in range(5)]
    log = table(times, usr=[10.0, 20.0, None, 40.0, 50.0], load=[1.0, 1.0, 1.0, 1.0, 1.0], memory__used=[5.0] * 5)
    page = log_page("x.log", log)
    assert [(tile.label, tile.value, tile.note) for tile in page.tiles] == [
        ("samples", "5", "a sample every 1 s"), ("duration", "4 s", ""), ("columns", "3", ""),
        ("starts of the recorder", "1", ""),
    ]  # fmt: skip
    course, columns = page.sections
    assert [plot.title for plot in course.plots] == [
        "total cpu usage: usr has the highest mean, 30 %", "load avg: 1m has the highest mean, 1.0",
        "memory: used has the highest mean, 5.0 B",
    ]  # fmt: skip
    assert columns.tables[0].rows[0] == ("total cpu usage:usr", "% of the time", "10", "30", "50", "1")
    assert columns.tables[1].rows == (("nulls", "total cpu usage:usr", "1"),)
    chosen = log_page("x.log", log, "1min|used")
    assert len(chosen.sections[0].plots) == 2
    assert "2 of 3 columns are drawn." in chosen.sections[0].text
    assert "&lt;b&gt;" in render(log_page("<b>", log))


def test_a_long_log_is_thinned_to_means_without_missing_values() -> None:
    values = np.arange(2.0 * MOST_POINTS + 1)
    values[[0, 2, 3]] = np.nan
    thinned = _thinned(values)
    assert (_stride(len(values)), len(thinned)) == (3, -(-len(values) // 3))
    assert thinned[:2].tolist() == [1.0, 4.5]
    np.testing.assert_array_equal(_thinned(values[:10]), values[:10])
    assert np.isnan(_thinned(np.full(3 * MOST_POINTS, np.nan))).all()


def test_what_is_no_log_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("hello")
    assert plot(str(tmp_path / "notes.txt"), code=2).output.startswith(
        f"ciml: {tmp_path}/notes.txt: not a usable log: not_telemetry"
    )
    assert f"{tmp_path}/none.log: no such file" in plot(f"{tmp_path}/none.log", code=2).output
    assert "is a folder; give one log" in plot(f"{tmp_path}/", code=2).output
    assert "no file 'cpu', and no data set without --data-path DATA" in plot("cpu", code=2).output
    nothing = plot(str(GOLDEN / "dool.log"), "--features-regex", "nosuch", code=2).output
    assert "--features-regex 'nosuch' selects none of the columns" in nothing


def test_a_log_of_an_ambiguous_zone_is_drawn_with_its_zone(tmp_path: Path) -> None:
    """CDT is Chicago or Havana, an hour apart."""
    log, out = tmp_path / "chicago.csv", str(tmp_path / "out")
    rows = "".join(f"15-06 12:00:{second:02d},{second}\n" for second in range(9))
    head = '"Cmdline:","dstat -tl",,,,"Date:","15 Jun 2026 12:00:00 CDT"\n"system","load avg"\n"time","1m"\n'
    log.write_text(head + rows)
    failed = " ".join(plot(str(log), "--output", out, code=2).output.split())
    assert "several zones fit the event's start and end (America/Chicago, America/Havana)" in failed
    assert "name one, such as America/Chicago (--zone)" in failed
    plot(str(log), "--zone", "America/Chicago", "--output", out)
    assert (tmp_path / "out" / "index.html").exists()
    assert "unknown time zone 'Chicago'" in plot(str(log), "--zone", "Chicago", "--output", out, code=2).output
