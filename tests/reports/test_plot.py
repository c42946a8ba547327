"""``ciml plot``: every plot is there, the page needs nothing but itself, and a hostile name stays a text."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import pytest
from click.testing import CliRunner, Result

from ciml.data_root import DataRoot
from ciml.reports.dataset.render import dataset_page, plot_dataset
from ciml.reports.drawing import COLORS, Plot, colors_of, distinct, quantity, seconds, shown
from ciml.reports.page import Page, Section, save
from ciml.storage import open_store
from tests.durable import Steps
from tests.reports.scenes import HOSTILE, runs


class Tags(HTMLParser):
    """The elements of a page, and the names and values of their attributes."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.attributes: list[tuple[str, str]] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes += [(name, value or "") for name, value in attrs]

    def handle_data(self, data: str) -> None:
        self.text += data


def self_contained(page: str, *links: str) -> Tags:
    """Asserts that a page runs nothing and asks for nothing, and leads nowhere but to ``links``."""
    tags = Tags(page)
    assert not tags.tags & {"script", "img", "iframe", "object", "embed", "link", "base", "form"}
    for name, value in tags.attributes:
        assert not name.startswith("on"), (name, value)
        if name in ("src", "href", "xlink:href"):
            assert value in links or value.startswith(("#", "data:image/png;base64,")), value[:80]
    assert not re.search(r"url\((?!#)|@import", page)
    return tags


def check_files(folder: Path, *stems: str) -> None:
    """Asserts that a folder holds a page with these plots, each as an SVG and as a PNG, and nothing else."""
    names = sorted(path.name for path in folder.iterdir())
    assert names == sorted([f"{stem}.{end}" for stem in stems for end in ("png", "svg")] + ["index.html"])
    for stem in stems:
        root = ElementTree.fromstring((folder / f"{stem}.svg").read_text())
        assert root.tag == "{http://www.w3.org/2000/svg}svg"
        assert (folder / f"{stem}.png").read_bytes().startswith(b"\x89PNG")


@pytest.fixture(scope="module")
def drawn(hostile_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the plots of ``bad``."""
    folder = tmp_path_factory.mktemp("hostile")
    where = plot_dataset(DataRoot.open(hostile_root).dataset("bad"), folder / "plots")
    assert where == f"{folder}/plots/index.html"
    return folder


def test_every_plot_is_an_svg_and_a_png_and_hostile_names_stay_text(drawn: Path):
    tags = self_contained((drawn / "plots" / "index.html").read_text())
    assert all(name in tags.text for name in HOSTILE[:3])
    stems = ["classes", "course-001-usr", "course-002-1m", "examples", "image", "jobs", "lengths", "outcomes"]
    check_files(drawn / "plots", *stems)


def test_the_page_is_written_last(tmp_path: Path):
    """A process that dies earlier leaves no page with missing files."""
    plots = [Plot(name, "a title", "", (1.0, 1.0), lambda figure: None) for name in ("one", "two")]
    page = Page("a page", "", (), (Section("both", *plots),))
    written = [f"replace {name}.{end}" for name in ("one", "two") for end in ("svg", "png")]
    for before in range(7):
        folder = tmp_path / str(before)
        with Steps(str(folder), before).recording() as steps:
            save(open_store(folder), page, {"runs.csv": b"x"})
        assert steps.steps == [*written, "replace runs.csv", "replace index.html"][:before]
        assert (folder / "index.html").exists() == (before == 6)


def test_titles_state_the_finding():
    scene = runs([[80, 80, 80]] * 6 + [[20]] * 2, [0] * 6 + [1] * 2, split=["train"] * 5 + ["test"] * 3)
    page = dataset_page(scene, [0])
    titles = {plot.name: plot.title for section in page.sections for plot in section.plots}
    assert titles == {
        "classes": "8 runs in 2 classes; the largest is passed with 75 %",
        "lengths": "The median run takes 30 s, from 10 s (failed) to 30 s (passed)",
        "outcomes": "8 runs by day and outcome; at most 8 on 2026-11-24",
        "jobs": "Runs by job and day; most are of unit",
        "course-001-usr": "total cpu usage:usr: highest in passed (80 %), lowest in failed (20 %)",
        "examples": "Runs of median length of each class, as an estimator sees them",
        "image": "All 8 runs as an image: one row per run, by class, the longest first",
    }
    assert [(tile.label, tile.value, tile.note) for tile in page.tiles] == [
        ("runs", "8", "train 5 · dev 0 · test 3"),
        ("classes", "2", "label: status"),
        ("features", "1 × 3", "windows of 10s"),
        ("jobs", "1", "build_name: all"),
    ]
    assert page.sections[-1].text == ""
    assert page.sections[-1].tables[0].rows == (("usr", "total cpu usage:usr", "% of the time", "20", "74", "80"),)


def test_aggregates_are_plotted_by_function():
    scene = runs([[80, 5]] * 6 + [[20, 9]] * 2, [0] * 6 + [1] * 2, functions=["mean", "std"])
    page = dataset_page(scene, [0])
    titles = {plot.name: plot.title for section in page.sections for plot in section.plots}
    assert "lengths" not in titles
    assert titles["course-001-usr"] == "total cpu usage:usr: highest in passed (80 %), lowest in failed (20 %)"
    (course,) = (plot for section in page.sections for plot in section.plots if plot.name == "course-001-usr")
    assert "function of a run's windows" in course.svg


def test_sixty_jobs_are_twenty_rows_and_the_rest():
    scene = runs([[1]] * 70, [0] * 35 + [1] * 35, build_name=[f"job-{number % 60:02}" for number in range(70)])
    (jobs,) = (plot for section in dataset_page(scene, [0]).sections for plot in section.plots if plot.name == "jobs")
    assert "40 others (40)" in jobs.svg
    assert "job-09 (2)" in jobs.svg
    assert "job-55" not in jobs.svg


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("fine-job.3", "fine-job.3"),
        ("_hidden", " _hidden"),
        ("a\nb\x1b", "a\N{REPLACEMENT CHARACTER}b\N{REPLACEMENT CHARACTER}"),
        ("periodic-tempest-full-py3-stable", "periodic-tem…ll-py3-stable"),
    ],
)
def test_names_are_shown_in_one_short_line(name: str, expected: str):
    assert shown(name) == expected


def test_values_and_colours():
    assert [seconds(value) for value in (9.5, 150, 9000)] == ["9.5 s", "2.5 min", "2.5 h"]
    texts = [quantity(3.52e9, "B"), quantity(3.86, "processes"), quantity(64.2, "% of the time"), quantity(1234, "1/s")]
    assert texts == ["3.5 GB", "3.9", "64 %", "1.2 k"]
    assert colors_of(["failed", "passed"]) == ["#D55E00", "#0072B2"]
    many = colors_of([f"class {number}" for number in range(7)] + ["9 others"])
    assert len(set(many)) == 8
    assert many[-1] == COLORS[-1]


def ciml(*arguments: str) -> Result:
    from ciml.cli.main import cli

    return CliRunner().invoke(cli, ["plot", *arguments])


def test_the_command_prints_the_address_of_the_page(hostile_root: Path, drawn: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(drawn)
    done = ciml("bad", "--data-path", str(hostile_root), "--features-regex", "^1min$")
    assert (done.exit_code, done.output) == (0, f"{drawn}/bad-plots/index.html\n")
    courses = sorted(path.name for path in (drawn / "bad-plots").glob("course*.svg"))
    assert courses == ["course-001-1m.svg"]
    for path in (drawn / "bad-plots").glob("*g"):  # what both drew is the same to the byte
        if not path.name.startswith("course"):
            assert path.read_bytes() == (drawn / "plots" / path.name).read_bytes(), path.name
    assert "1 of 2 features is drawn" in (drawn / "bad-plots" / "index.html").read_text()


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        ([], "Error: no data set: give NAME or --dataset NAME"),
        (["bad", "--dataset", "good"], "Error: two data sets: 'bad' and --dataset 'good'; give one"),
        (["bad", "--features-regex", "("], "ciml: '(' is not a regular expression: missing ), unterminated subpattern"),
        (["bad", "--features-regex", "gpu"], "ciml: --features-regex 'gpu' selects none of the features usr, 1m"),
        (["nothing"], "ciml: no data set 'nothing' in "),
        (["cpu"], "ciml: data set 'cpu' has no sealed span yet: ciml dataset update cpu --seal"),
    ],
)
def test_a_mistake_is_one_line(hostile_root: Path, arguments: list[str], line: str):
    done = ciml(*arguments, "--data-path", str(hostile_root))
    assert done.exit_code == 2
    assert done.stderr.splitlines()[-1].startswith(line)


def test_names_that_would_look_the_same_stay_distinct():
    jobs = [f"tempest-integrated-{number:02}-py3-with-a-long-name" for number in (3, 14)]
    assert distinct([*jobs, "unit"], 20) == ["…egrated-03-py3-wit…", "…egrated-14-py3-wit…", "unit"]
    assert distinct(["a" * 40 + "1", "a" * 40 + "2"], 10) == ["aaaa…aaaa1", "aaaa…aaaa2"]
    ends = ["x" * 30 + middle + "y" * 30 for middle in ("0" * 40 + "1" + "0" * 40, "0" * 40 + "2" + "0" * 40)]
    assert len(set(distinct(ends, 12))) == 2
    assert distinct(["job\n1", "job\x001"], 26) == [
        "job\N{REPLACEMENT CHARACTER}1 #1",
        "job\N{REPLACEMENT CHARACTER}1 #2",
    ]
    assert distinct(["one", "two"]) == ["one", "two"]
