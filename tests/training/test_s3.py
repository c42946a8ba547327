"""A data root on S3: snapshots, the automatic length and exclusions are those of a local folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

import ciml
from ciml.cli.main import cli
from ciml.data_root import DataRoot
from ciml.storage import LocalStore
from ciml.training.data.snapshot import Snapshot, make_snapshot, read_snapshot
from ciml.training.export import load_exported
from ciml.training.refresh import Candidate, TrainConfig, refresh
from ciml.trust import TrustPolicy
from tests.pipelines.datasets.test_auto_windows import run_of
from tests.runs.scenes import RawStore
from tests.training.conftest import QUICK

pytestmark = pytest.mark.engines

LENGTHS = [3 + (number * 7) % 11 for number in range(60)]
EXCLUDED = "zuul~1~1"


def command(url: str, *words: str) -> str:
    done = CliRunner().invoke(cli, ["--data-path", url, *words])
    assert done.exit_code == 0, done.output
    return done.stdout


def snapshot_of(url: str) -> Snapshot:
    return make_snapshot(DataRoot.open(url).dataset("cpu"), TrustPolicy.load())


def test_they_equal_those_of_a_folder(s3: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    local, remote = str(tmp_path / "data"), f"{s3.bucket()}/data"
    for url in (local, remote):
        RawStore(DataRoot.open(url)).add(
            [run_of(number, length, pipeline="gate", change=f"{number}") for number, length in enumerate(LENGTHS, 1)]
        )
        ciml.open(url).define_dataset("cpu", sample_interval="1s", tdt_split=(6, 0, 4))

    def both(what: Any) -> Any:
        here, there = what(local), what(remote)
        assert here == there
        return there

    assert both(lambda url: ciml.open(url).dataset("cpu").windows) == sorted(LENGTHS)[-1] == 13
    before = both(snapshot_of)
    assert EXCLUDED in {run.run_id for run in before.runs()}
    words = ("exclude", "--run", EXCLUDED, "--reason", "disk was full")
    assert both(lambda url: command(url, *words)).endswith("disk was full; stored runs that match: 1\n")
    (listed,) = json.loads(command(remote, "exclude", "list", "--json"))
    assert (listed["id"], listed["run_id"], listed["reverted_us"]) == (1, EXCLUDED, None)
    after = both(snapshot_of)
    assert {run.run_id for run in before.runs()} - {run.run_id for run in after.runs()} == {EXCLUDED}
    command(remote, "experiment", "train", "--dataset", "cpu", "--estimator", "random_forest")
    trained = ciml.open(remote).train("cpu", "random_forest")
    assert (trained.new, trained.figures["snapshot"]["digest"]) == (False, after.digest)
    assert trained.figures["test"] == ciml.open(local).train("cpu", "random_forest").figures["test"]
    assert after.digest != before.digest
    assert both(lambda url: command(url, "exclude", "revert", "1")).startswith("reverted 1: ")
    assert both(snapshot_of) == before


def test_a_data_path_on_s3_gives_the_same_snapshot_and_keeps_its_records_there(
    s3: Any, made: Path, snapshot: Snapshot, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    local, data = LocalStore(made), DataRoot.open(s3.bucket())
    for path in local.list():
        assert data.store.create(path, local.read(path))
    done = refresh(TrainConfig(data, "providers", "m", QUICK))

    assert isinstance(done, Candidate)
    assert done.snapshot == snapshot
    assert done.decision.blessed, done.decision.reasons
    assert done.folder.is_relative_to(tmp_path / "ciml/trainer")
    assert load_exported(done.folder).definition == snapshot.resolved
    trainer = data.trainer("m")
    assert read_snapshot(trainer, snapshot.digest) == snapshot
    assert sorted({path.split("/")[0] for path in trainer.list()}) == ["analyses", "metrics", "snapshots"]
    assert len(trainer.list("analyses")) == 1
