"""``ciml cluster``: the clustered runs, the record, the page, and hostile names."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result

from ciml.data_root import DataRoot
from ciml.reports.clusters import ClusterOptions, cluster_dataset, cluster_runs
from ciml.reports.clusters.page import cluster_page, distinctive_features
from ciml.reports.page import render
from tests.reports.scenes import HOSTILE, runs
from tests.reports.test_plot import self_contained


@pytest.fixture(autouse=True)
def few_trials(monkeypatch: pytest.MonkeyPatch) -> None:
    """Compare with 5 random assignments, not 100: tests/training/experiments/test_clustering.py checks them."""
    monkeypatch.setattr("ciml.training.experiments.clustering.TRIALS", 5)


def ciml(*arguments: str) -> Result:
    from ciml.cli.main import cli

    return CliRunner().invoke(cli, ["cluster", *arguments])


def test_two_kinds_of_runs_are_two_clusters():
    scene = runs([[90, 90 + n] for n in range(6)] + [[5, 5 + n] for n in range(4)], [0] * 6 + [1] * 4)
    found = cluster_runs(scene, ClusterOptions(most_k=4))
    assert (found.chosen.k, found.silhouette, list(found.facts)) == (2, 2, ["status"])
    assert found.chosen.of.tolist() == [0] * 6 + [1] * 4
    (table,) = found.tables().values()
    assert (table.names, table.counts.tolist()) == (("passed", "failed"), [[6, 0], [0, 4]])
    value = found.to_json()
    assert (value["k"], value["runs"], value["values_a_run"]) == (2, 10, 2)
    assert [each["k"] for each in value["tried"]] == [1, 2, 3, 4]
    assert value["tried"][0]["agreement"] == {"status": None}
    assert value["tried"][1]["agreement"]["status"]["rand"] == 1.0
    assert value["clusters"][1]["classes"]["status"] == [{"class": "failed", "runs": 4, "pclass": 1.0, "pcluster": 1.0}]
    assert [each["cluster"] for each in value["assignments"]] == found.chosen.of.tolist()
    assert set(value["clusters"][0]["nearest"]) <= set(scene.run_id[:6])
    page = cluster_page(found)
    titles = {plot.name: plot.title for section in page.sections for plot in section.plots}
    assert titles["choice"].endswith("2 clusters")
    assert titles["shares-1"] == "Cluster 0 is the most uniform: it has 100 % of passed, and 100 % of it is passed"
    assert page.sections[1].tables[0].rows == (
        ("0", "passed", "6", "100.0 %", "100.0 %"),
        ("1", "failed", "4", "100.0 %", "100.0 %"),
    )


def test_a_value_that_the_training_runs_never_have_makes_no_cluster():
    """The third window of all training runs is padding; that of a test run holds bytes."""
    training = [[90, 90 + n, 0] for n in range(6)] + [[5, 5 + n, 0] for n in range(4)]
    scene = runs([*training, [90, 93, 6.4e7]], [0] * 6 + [1] * 4 + [0], split=["train"] * 10 + ["test"])
    found = cluster_runs(scene, ClusterOptions(most_k=4))
    assert found.chosen.of.tolist() == [0] * 6 + [1] * 4 + [0]


def test_a_given_number_of_clusters_is_chosen():
    found = cluster_runs(runs([[n] for n in range(8)], [0] * 4 + [1] * 4), ClusterOptions(k=5, most_k=2))
    assert [each.k for each in found.tried] == [1, 2, 5]
    assert (found.chosen.k, found.chosen.of.max()) == (5, 4)
    assert found.elbow in (1, 2)


def test_runs_that_are_all_alike_are_one_cluster():
    found = cluster_runs(runs([[3, 3]] * 5, [0, 0, 0, 1, 1]), ClusterOptions())
    assert ([each.k for each in found.tried], found.chosen.k, found.silhouette) == ([1], 1, None)
    self_contained(render(cluster_page(found)))


def test_the_features_in_which_clusters_differ_most_are_chosen():
    scene = runs([[0, 0]] * 3 + [[1, 1]] * 3, [0] * 3 + [1] * 3)
    flat = np.ones((6, 2, 8), np.float32)
    flat[:, :, 5] = scene.inputs[:, :, 0]
    resolved = scene.resolved.replace(features=tuple("abcdefgh"), columns=tuple(f"x:{name}" for name in "abcdefgh"))
    wide = replace(scene, inputs=flat, resolved=resolved, normalisation=type(scene.normalisation).of(flat))
    found = cluster_runs(wide, ClusterOptions(most_k=2))
    assert found.chosen.of.tolist() in ([0] * 3 + [1] * 3, [1] * 3 + [0] * 3)
    assert 5 in distinctive_features(found)
    assert len(distinctive_features(found)) == 6


def test_one_class_alone_is_compared_by_job(hostile_data: DataRoot):
    found = cluster_dataset(hostile_data.dataset("bad"), ClusterOptions(only="_hidden"))
    assert set(found.runs.class_name) == {"_hidden"}
    assert (len(found.runs), found.of_runs, list(found.facts)) == (4, 4, ["build_name"])


def test_first_windows_leave_padding_and_shorter_runs_out(hostile_data: DataRoot):
    found = cluster_dataset(
        hostile_data.dataset("bad"), ClusterOptions(first=4, most_k=3, against=("who", "build_name", "source"))
    )
    assert (len(found.runs), found.runs.inputs.shape) == (12, (12, 4, 2))
    assert set(found.runs.n_windows.tolist()) == {4, 5}
    assert list(found.facts) == ["who", "build_name", "source"]
    assert found.facts["source"].tolist() == ["zuul"] * 12
    assert found.agreements[2]["source"] is None


@pytest.mark.whole
def test_the_command_writes_the_same_files_twice_and_prints_json_for_programs(hostile_root: Path, tmp_path: Path):
    arguments = ("bad", "--data-path", str(hostile_root), "--max-k", "3", "--against", "who")
    done = ciml(*arguments, "--output", str(tmp_path / "one"))
    assert done.exit_code == 0, done.output
    assert done.output.endswith(f"{tmp_path}/one/index.html\n")
    named = ("--dataset", *arguments, "--json", "--output", str(tmp_path / "two"))
    printed = json.loads(ciml(*named).stdout)
    files = sorted(path.name for path in (tmp_path / "one").iterdir())
    stems = ["agreement", "choice", "course-001-usr", "course-002-1m", "map", "shares-1"]
    assert files == sorted(
        [f"{stem}.{end}" for stem in stems for end in ("png", "svg")] + ["clusters.json", "index.html"]
    )
    for name in files:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes(), name
    tags = self_contained((tmp_path / "one" / "index.html").read_text())
    assert all(name in tags.text for name in HOSTILE[:2])
    value = json.loads((tmp_path / "one" / "clusters.json").read_text())
    assert len(value["assignments"]) == 24
    assert {name: each for name, each in value.items() if name != "assignments"} == printed
    assert sum(each["runs"] for each in value["clusters"]) == 24


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["--only", "failed"], "ciml: data set 'bad' has no class 'failed', but "),
        (["--first", "6"], "ciml: data set 'bad' has no example with 6 windows or more in train, dev, test"),
        (["--split", "dev"], "ciml: data set 'bad' has no example in dev"),
        (["--k", "25"], "ciml: --k 25: only 24 of the 24 runs differ"),
    ],
)
def test_a_mistake_is_one_line(hostile_root: Path, tmp_path: Path, arguments: list[str], line: str):
    done = ciml("bad", *arguments, "--data-path", str(hostile_root), "--output", str(tmp_path))
    assert done.exit_code == 2
    assert done.stderr.startswith(line)
    assert done.stderr.count("\n") == 1
