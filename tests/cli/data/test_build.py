"""``ciml-build-dataset``: the talk's line, and what is wrong with others."""

from __future__ import annotations

import json
import re
import tomllib
from functools import partial
from pathlib import Path

import pytest
from click.testing import CliRunner

from ciml.cli.commands.data.dataset.build import make_talk_command
from ciml.cli.talk_scripts import undashed
from ciml.data_root import DataRoot
from ciml.pipelines.datasets.update import verify_dataset
from ciml.reports.dataset.render import plot_dataset
from ciml.storage import open_store
from tests.cli.calling import ciml
from tests.corpus import CORPUS, builds
from tests.runs.scenes import RawStore
from tests.transforms.samples import corpus

#: As it stands in the talk, but for the two places.
LINE = """--dataset cpu-load-1min-dataset --build-name tempest-full --slicer :2000 --sample-interval 10min
  --features-regex (usr|1min) --class-label status --tdt-split 7 0 3 --data-path DATA --target-data-path TARGET"""


@pytest.fixture(scope="module")
def data_path(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("data")
    runs, tables, _ = corpus(60)
    raw = RawStore(DataRoot.open(path))
    raw.add([(run.replace(build_name="tempest-full"), table) for run, table in zip(runs, tables, strict=True)])
    return str(path)


build = partial(ciml, "dataset", "build")


def test_the_line_of_the_talk_works_as_pasted_and_twice(tmp_path: Path, data_path: str) -> None:
    target = tmp_path / "sets"
    line = LINE.replace("DATA", data_path).replace("TARGET", str(target)).replace("--", "—").split()
    done = [CliRunner().invoke(make_talk_command(), undashed(line)) for _ in range(2)]
    assert [(each.exit_code, each.stderr) for each in done] == [(0, "")] * 2
    first, second = (each.stdout.splitlines() for each in done)
    assert first[0] == (
        f"cpu-load-1min-dataset: 60 examples of 10 x 2, 60 of them new: {target}/datasets/cpu-load-1min-dataset"
    )
    assert second == [first[0].replace("60 of them new", "all were there"), *first[1:]]
    assert "  features  usr, 1m" in first
    (padding,) = [line for line in first if line.startswith("  padding ")]
    assert re.fullmatch(r"  padding   [89]\d\.\d% of 10 windows", padding)  # and no warning: this length is the talk's
    state = DataRoot.open(target).dataset("cpu-load-1min-dataset").state()
    assert state.version == 2
    assert state.definition is not None
    assert state.definition.to_json() | {"version": 0, "salt": "", "span_runs": 0} == {
        "name": "cpu-load-1min-dataset", "version": 0, "build_name": ["tempest-full"], "sample_interval": "10min",
        "features_regex": "(usr|1min)", "class_label": "status", "classes": None, "class_map": {},
        "tdt_split": [7, 0, 3], "salt": "", "sample_statistic": "mean", "aggregation_functions": [],
        "max_windows": None, "count_first_sample": True, "span_runs": 0, "slicer": ":2000", "raw_version": 1,
    }  # fmt: skip


def test_options_win_over_the_definitions_file_which_builds_the_same_alone(tmp_path: Path, data_path: str) -> None:
    file = tmp_path / "mine.toml"
    file.write_text('name = "mine"\nfeatures_regex = "usr"\nsample_interval = "10s"\nclass_label = "project"\n')
    options = ["--aggregation-functions", "mean,std", "--aggregation-functions", "max", "--sample-statistic", "max"]
    one, two = str(tmp_path / "one"), str(tmp_path / "two")
    made = build(
        "--definition", str(file), "--sample-interval", "5s", *options, "--slicer", "10:40",
        "--data-path", data_path, "--target-data-path", one,
    )  # fmt: skip
    assert made.stdout.startswith("mine: 30 examples of 3 x 1, 30 of them new")
    written = Path(one, "datasets/mine/_definition.toml")
    reported = tomllib.loads(written.read_text())
    assert reported["aggregation_functions"] == ["mean", "std", "max"]
    assert (reported["sample_interval"], reported["slicer"], reported["raw_version"]) == ("5s", "10:40", 1)
    again = build("--definition", str(written), "--data-path", data_path, "--target-data-path", two)
    assert again.stdout.replace(two, one) == made.stdout
    deltas = [json.loads(Path(each, "datasets/mine/_manifest/000000000002.json").read_text()) for each in (one, two)]
    assert deltas[0]["spans"] == deltas[1]["spans"]
    assert written.read_bytes() == Path(two, "datasets/mine/_definition.toml").read_bytes()


def test_force_replaces_another_definition_and_nothing_else(tmp_path: Path, data_path: str) -> None:
    line = ["--dataset", "x", "--class-label", "project", "--data-path", data_path, "--target-data-path", str(tmp_path)]
    build(*line, "--slicer", ":10")
    output = build(*line, "--slicer", ":20", code=2).output
    assert "data set 'x' exists with another slicer; choose another name" in output
    assert "all were there" in build(*line, "--slicer", ":10", "--force").stdout
    for invalid in (["--features-regex", "nothing"], ["--build-name", "nothing"]):
        build(*line, "--slicer", ":20", "--force", *invalid, code=2)
        assert "all were there" in build(*line, "--slicer", ":10").stdout
    assert "20 examples" in build(*line, "--slicer", ":20", "--force").stdout


def test_directly_from_logs_unusable_lines_are_reported(tmp_path: Path) -> None:
    listed = [json.dumps(line) for line in builds(40)]
    (tmp_path / "builds.jsonl").write_text("\n".join([*listed, listed[0], "{}"]))
    line = ["--dataset", "x", "--class-label", "project", "--features-regex", "usr", "--data-path", str(tmp_path / "x")]
    logs = ["--listing", str(tmp_path / "builds.jsonl"), "--logs", str(CORPUS), "--jobs", "1"]
    reported = build(*line, *logs).stdout.splitlines()
    assert re.fullmatch(rf"x: 40 examples of \d+ x 1, 40 of them new: {tmp_path}/x/datasets/x", reported[0])
    assert reported[-1] == "  no runs   2 lines of the listing: dead_letter missing_field 1, repeat run 1"
    for invalid in (["--features-regex", "nothing"], ["--build-name", "nothing"]):
        build(*line, *logs, "--force", *invalid, code=2)
        assert "all were there" in build(*line, *logs).stdout
    assert "give both or neither" in build(*line, *logs[:2], code=2).output
    assert "--runner: not supported with --listing" in build(*line, *logs, "--runner", "fnapi", code=2).output
    assert "no such listing" in build(*line, "--listing", "nowhere.jsonl", *logs[2:], code=2).output


def test_classes_are_merged(tmp_path: Path) -> None:
    line = ["--dataset", "x", "--class-label", "project", "--features-regex", "usr", "--data-path", str(tmp_path)]
    logs = ["--listing", str(CORPUS / "builds.jsonl"), "--logs", str(CORPUS), "--slicer", ":40"]
    others = [f"--class-map={name}=other" for name in ("jinja", "networkx", "sympy")]
    reported = build(*line, *logs, "--class-map", "numpy=numpy", *others).stdout.splitlines()
    assert [each.split()[1] for each in reported if each.startswith("  class")] == ["numpy:", "other:"]
    written = (tmp_path / "datasets/x/_definition.toml").read_text()
    assert 'class_map = {"numpy" = "numpy", "jinja" = "other", "networkx" = "other", "sympy" = "other"}' in written


@pytest.mark.whole
@pytest.mark.parametrize("target", ["local", pytest.param("s3", marks=pytest.mark.engines)])
def test_visualize_draws_what_plot_draws(
    target: str, tmp_path: Path, data_path: str, request: pytest.FixtureRequest
) -> None:
    root = str(tmp_path / "sets") if target == "local" else f"{request.getfixturevalue('s3').bucket()}/sets"
    line = ["--dataset", "x", "--class-label", "project", "--features-regex", "usr", "--data-path", data_path]
    line += ["--target-data-path", root]
    plots = open_store(f"{root}/datasets/x/_plots")
    assert "plots" not in build(*line).stdout
    assert build(*line, "--visualize").stdout.splitlines()[-1] == f"  plots     {plots.url()}/index.html"
    dataset = DataRoot.open(root).dataset("x")
    assert verify_dataset(dataset) == []
    drawn = {path: plots.read(path) for path in plots.list()}
    assert {"index.html", "classes.png", "course-001-usr.svg"} <= set(drawn)
    assert all(drawn.values())
    if target == "local":  # each store gets the same bytes
        plot_dataset(dataset, tmp_path / "plots")
        assert drawn == {path.name: path.read_bytes() for path in (tmp_path / "plots").iterdir()}
    build(*line, "--slicer", ":20", "--force")
    assert plots.list() == []


@pytest.mark.parametrize(
    ("wrong", "reported"),
    [
        (["--dataset", "x", "--features-regex", "nosuch"], "matches none of the columns"),
        (["--dataset", "x", "--features-regex", "("], "features_regex"),
        (["--dataset", "x", "--build-name", "nosuch"], "stored jobs: tempest-full"),
        (["--dataset", "x", "--class-label", "region"], "no run has a value of it"),
        (["--dataset", "x", "--sample-interval", "0s"], "sample_interval: interval '0s': must be longer than zero"),
        (["--dataset", "x", "--slicer", "1:2:0"], "slicer '1:2:0': want a slice"),
        (["--dataset", "x", "--tdt-split", "0", "0", "3"], "tdt_split: want three weights"),
        (["--dataset", "x", "--aggregation-functions", "mean,nosuch"], "aggregation_functions"),
        (["--dataset", "x", "--definition", "nowhere.toml"], "nowhere.toml"),
        (["--dataset", "x", "--class-map", "aws"], "'aws': not VALUE=CLASS"),
        (["--dataset", "x", "--class-map", "aws=one"], "class_map: want at least two classes"),
        (["--dataset", "../x"], "name"),
        ([], "no name of the data set"),
    ],
)
def test_a_mistake_is_one_line(tmp_path: Path, data_path: str, wrong: list[str], reported: str) -> None:
    done = build(*wrong, "--data-path", data_path, "--target-data-path", str(tmp_path / "sets"), code=2)
    assert reported in done.output
    assert done.output.count("\n") == 1, done.output
    assert not (tmp_path / "sets").exists()
