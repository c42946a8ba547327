"""``ciml tables`` from the command line, and the commands that publish what they change."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ciml.data_root import DataRoot
from ciml.runs.tables.publish import list_tables, publish_tables
from tests.cli.calling import ciml
from tests.runs.compacting import run
from tests.runs.scenes import RawStore
from tests.runs.tables.scenes import make_dataset, make_store


def states(data: Path) -> dict[str, tuple[int | None, int]]:
    return {each.name: (each.version, each.behind) for each in list_tables(DataRoot.open(data))}


@pytest.fixture
def store(tmp_path: Path) -> RawStore:
    raw = make_store(DataRoot.open(tmp_path))
    make_dataset(DataRoot.open(tmp_path))
    return raw


def test_publish_and_list(tmp_path: Path, store: RawStore) -> None:
    done = ciml("tables", "publish", "--data-path", tmp_path)
    assert done.stdout.splitlines()[1] == (
        f"runs: version 0, 9 rows in 1 files, 1 files added, 0 removed: {tmp_path}/tables/runs"
    )
    assert done.stderr == ""
    assert "up to date" in ciml("tables", "publish", "--table", "runs", "--data-path", tmp_path).stdout
    lines = [json.loads(line) for line in ciml("tables", "list", "--json", "--data-path", tmp_path).stdout.splitlines()]
    assert [(line["name"], line["version"], line["rows"], line["behind"]) for line in lines] == [
        ("raw", 0, 42, 0), ("runs", 0, 9, 0), ("dead_letters", 0, 3, 0), ("datasets/cpu", 0, 8, 0),
    ]  # fmt: skip
    assert lines[3]["url"] == f"{tmp_path}/datasets/cpu"
    shown = ciml("tables", "list", "--table", "datasets/cpu", "--data-path", tmp_path).stdout
    assert "datasets/cpu" in shown
    assert "dead_letters" not in shown
    published = json.loads(ciml("tables", "publish", "--table", "runs", "--json", "--data-path", tmp_path).stdout)
    assert (published["name"], published["committed"], published["version"]) == ("runs", False, 0)


def test_an_unknown_table_is_an_error(tmp_path: Path, store: RawStore) -> None:
    unknown = ciml("tables", "publish", "--table", "run", "--data-path", tmp_path, code=2)
    assert "unknown table 'run'; choose from raw, runs, dead_letters, datasets/NAME" in unknown.stderr


def test_compaction_and_updates_publish_tables_that_are_in_use(tmp_path: Path, store: RawStore) -> None:
    store.add([run(number) for number in range(20, 26)])
    ciml("runs", "compact", "--older-than", "1s", "--grace", "1h", "--data-path", tmp_path)
    ciml("dataset", "update", "cpu", "--data-path", tmp_path)
    assert {version for version, _ in states(tmp_path).values()} == {None}  # nothing was published before
    list(publish_tables(DataRoot.open(tmp_path), ["runs"]))
    store.add([run(number) for number in range(30, 36)])
    ciml("runs", "compact", "--older-than", "1s", "--grace", "1h", "--data-path", tmp_path)
    assert states(tmp_path) == {"raw": (0, 0), "runs": (1, 0), "dead_letters": (0, 0), "datasets/cpu": (None, 7)}
    ciml("dataset", "update", "cpu", "--data-path", tmp_path)
    assert states(tmp_path)["datasets/cpu"] == (0, 0)
    ciml("dataset", "build", "--dataset", "whole", "--data-path", tmp_path)
    assert states(tmp_path)["datasets/whole"] == (0, 0)


def test_a_failure_to_publish_is_a_warning_of_the_compaction(tmp_path: Path, store: RawStore) -> None:
    list(publish_tables(DataRoot.open(tmp_path)))
    log = tmp_path / "raw" / "packs" / "_delta_log" / f"{0:020d}.json"
    log.write_text("{")
    store.add([run(20), run(21)])
    done = ciml("runs", "compact", "--older-than", "1s", "--grace", "1h", "--data-path", tmp_path)
    assert "2 runs packed into" in done.stdout
    assert done.stderr.startswith(f"warning: tables not published: {log.parent}: commit 0: ")
    assert done.stderr.strip().endswith("; retry: ciml tables publish")


def test_without_the_extra_the_compaction_publishes_nothing_and_publish_says_what_to_install(
    tmp_path: Path, store: RawStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    list(publish_tables(DataRoot.open(tmp_path)))
    monkeypatch.setattr("ciml.extras.is_installed", lambda module: module != "deltalake")
    monkeypatch.setattr("ciml.runs.tables.is_installed", lambda module: module != "deltalake")
    store.add([run(20), run(21)])
    assert ciml("runs", "compact", "--older-than", "1s", "--grace", "1h", "--data-path", tmp_path).stderr == ""
    assert states(tmp_path)["raw"][0] == 0
    lacking = ciml("tables", "publish", "--data-path", tmp_path, code=2)
    assert "this needs ciml[tables]: pip install 'ciml[tables]'" in lacking.stderr
