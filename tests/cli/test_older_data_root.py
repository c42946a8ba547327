"""A data root that version 0.1.0 wrote (tests/golden/data_root) is verified, continued, retrained and served.

It was written by the commands of that version: `backfill` of the first 70 lines of builds.jsonl, a data set of 60 runs,
a model that the gate blessed, an experiment with a result, and packs of one day. answers.json holds what its model
answered then.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from itertools import groupby
from pathlib import Path

import numpy as np
import pytest

from ciml.data_root import DataRoot
from ciml.digest import sha256_json
from ciml.manifest.log import ManifestLog
from ciml.runs.reader import read_runs
from ciml.runs.run_log import find_rows
from ciml.serving.client import ModelClient
from ciml.serving.registry import Registry
from ciml.serving.server.server import ModelServer, ServerOptions
from ciml.transforms.examples.spans import read_span
from tests.cli.calling import ciml
from tests.cli.operate.test_migrate import contents
from tests.golden import make_logs

GOLDEN = Path(__file__).parents[1] / "golden" / "data_root"
FEATURES = ("used", "free", "buff", "cach")
#: Digest of the resolved definition, as the registry of that version has it.
DEFINITION = "d15fb2d0f1a4436155bfa9ea246075fa7e5bb3e3caf7c97d3024ebac75bcb8c3"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    shutil.copytree(GOLDEN / "data", tmp_path / "data")
    return tmp_path / "data"


def printed(root: Path, *words: str, code: int = 0) -> str:
    return " ".join(ciml("--data-path", root, *words, code=code).output.split())


def test_it_is_verified_and_nothing_in_it_changes(root: Path) -> None:
    before = contents(root)
    assert "70 records of 70 runs" in printed(root, "runs", "verify")
    printed(root, "dataset", "verify", "provider")
    assert "1 of 1 versions are as recorded" in printed(root, "models", "verify")
    state = DataRoot.open(root).dataset("provider").state()
    assert state.resolved is not None
    assert sha256_json(state.resolved.to_json()) == DEFINITION
    assert "small-forest" in printed(root, "experiment", "show", "small-forest")
    assert contents(root) == before


def write_new_logs(root: Path, folder: Path) -> None:
    """Write a dstat log of each of the ten lines that the data root lacks, with the values of a run that it has."""
    raw, lines = DataRoot.open(root).raw, (GOLDEN / "builds.jsonl").read_text().splitlines()
    builds = [json.loads(line) for line in lines[-20:]]
    rows = find_rows(ManifestLog(raw), [f"backfill~{line['build_uuid']}~1" for line in builds[:10]])
    for line, table in zip(builds[10:], read_runs(raw, [row.file for row in rows.values()]), strict=True):
        start_us, names = make_logs.instant(line["start_time"]), table.column_names[2:]
        grouped = groupby(names, lambda name: name.partition(":")[0])
        groups = [(group, tuple(name.partition(":")[2] for name in some)) for group, some in grouped]
        recorder = replace(make_logs.DSTAT, groups=groups)
        rows = [
            recorder.row(start_us + number * make_logs.SECOND, map(str, values))
            for number, values in enumerate(zip(*(table[name].to_pylist() for name in names), strict=True))
        ]
        path = folder / line["log_path"]
        path.parent.mkdir(parents=True)
        path.write_text(recorder.header(start_us) + "".join(rows))


def test_it_is_continued(root: Path, tmp_path: Path) -> None:
    before = contents(root)
    write_new_logs(root, tmp_path / "logs")
    listing = str(GOLDEN / "builds.jsonl")
    assert "10 runs" in printed(root, "backfill", listing, "--logs", str(tmp_path / "logs"))
    assert "11 examples in 1 span sealed; 0 of 20 runs wait" in printed(root, "dataset", "update", "provider")
    printed(root, "runs", "verify")
    printed(root, "dataset", "verify", "provider")
    after = contents(root)
    assert {path: after.get(path) for path in before} == before  # what was there is there, byte for byte


@pytest.mark.whole
def test_it_is_retrained(root: Path, tmp_path: Path) -> None:
    experiment = tmp_path / "experiment.toml"
    experiment.write_text('estimator = "dnn"\nepochs = 2\nhidden_layers = [8]\n')
    output = printed(root, "refresh", "--dataset", "provider", "--experiment", str(experiment), code=5)
    assert "provider: not pushed" in output
    state = Registry(DataRoot.open(root), "provider").state
    assert [candidate.facts["champion"] for candidate in state.candidates.values()] == [None, 1]
    assert state.labels["stable"] == 1


@pytest.mark.whole
def test_its_model_is_served_and_answers_as_before(root: Path) -> None:
    printed(root, "models", "reconcile")
    config = root / "models" / "models.config"
    assert str(root) in config.read_text()
    answers = json.loads((GOLDEN / "answers.json").read_text())
    dataset = DataRoot.open(root).dataset("provider")
    rows = read_span(dataset.store, dataset.state().latest()[0])
    inputs = np.stack([np.stack(rows.column(name).to_pylist()) for name in FEATURES], -1).astype("f4")
    windows = np.array(rows.column("n_windows").to_pylist(), "i4")
    expected = np.array([answers[run_id] for run_id in rows.column("run_id").to_pylist()])
    assert len(expected) == len(answers) == 20
    with ModelServer(ServerOptions(str(config), grpc_port=0, rest_port=0)) as server:
        found = ModelClient(f"127.0.0.1:{server.grpc_port}", "provider").predict(inputs, windows)
    assert np.abs(found.probabilities - expected).max() < 1e-5
