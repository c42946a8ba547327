"""Tables that grow with a random manifest equal what is computed from all of it, however often they are published."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from ciml.data_root import DataRoot
from ciml.manifest.checkpoints import Checkpoints, Limits
from ciml.runs.state import RAW
from ciml.runs.tables import row_tables, store_of
from ciml.runs.tables.delta_log import DeltaLog
from ciml.runs.tables.publish import publish_tables
from ciml.runs.tables.row_tables import Part, part_of, parts_of
from tests.runs.compacting import run
from tests.runs.raw_world import World, deliveries
from tests.runs.scenes import RawStore
from tests.runs.tables.scenes import expected
from tests.runs.tables.test_publish import read, rows_of
from tests.runs.test_updates import Manifest, says
from tests.runs.test_updates import run as one_run
from tests.tier import tries
from tests.transforms.samples import make_facts


@pytest.mark.parametrize("seed", range(tries(3)))
def test_published_now_and_then_equals_published_once(
    seed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(row_tables.parts_of, "__defaults__", (2_000,))
    rng = random.Random(seed)
    grown, once = DataRoot.open(tmp_path), DataRoot.open(tmp_path / "once")
    actor = World(tmp_path / "raw").actor()
    published = 0
    for batches in deliveries(seed, 50):
        actor.commit(batches)
        if rng.random() < 0.3:
            actor.maintain()
        if rng.random() < 0.2:
            published += sum(done.committed for done in publish_tables(grown, ["runs", "dead_letters"]))
    list(publish_tables(grown, ["runs", "dead_letters"]))
    (tmp_path / "once").mkdir()
    (tmp_path / "once" / "raw").symlink_to(tmp_path / "raw")
    list(publish_tables(once, ["runs", "dead_letters"]))
    assert published > 5
    for name in ("runs", "dead_letters"):
        rows = read(grown, name)
        assert rows == read(once, name) == expected(grown, name)
        assert len(rows) > 10
        kept = {path for path in store_of(grown, name).list() if part_of(path)}
        assert len({part_of(path) for path in kept}) > 4


def test_parts_end_with_segments_and_cover_every_version_once() -> None:
    assert parts_of([], 0) == []
    assert parts_of([], 7) == [Part(1, 7)]
    assert parts_of([(10, 3), (20, 3), (25, 9)], 25, 5) == [Part(1, 20), Part(21, 25)]
    assert parts_of([(10, 3), (20, 3), (25, 9)], 24, 5) == [Part(1, 20), Part(21, 24)]
    assert part_of(Part(3, 9).path("0" * 64)) == Part(3, 9)
    assert part_of("000000000003-000000000009.parquet") is None


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """A part for each segment."""
    monkeypatch.setattr(row_tables.parts_of, "__defaults__", (1,))


def files(data: DataRoot, name: str) -> set[str]:
    return set(DeltaLog(store_of(data, name)).read().files)


def test_an_old_part_is_made_again_only_if_one_of_its_rows_changed(data: DataRoot, small: None) -> None:
    raw = RawStore(data)
    checkpoints = Checkpoints(raw.log, RAW, Limits(deltas=3))
    for number in range(1, 12):
        raw.add([run(number)])
    while checkpoints.maintain():
        pass
    list(publish_tables(data, ["runs"]))
    before = files(data, "runs")
    assert sorted(map(part_of, before)) == [Part(1, 3), Part(4, 6), Part(7, 9), Part(10, 11)]
    raw.add(corrections=[make_facts(5, outcome="failure")])
    list(publish_tables(data, ["runs"]))
    left, came = before - files(data, "runs"), files(data, "runs") - before
    assert sorted(map(part_of, left)) == [Part(4, 6), Part(10, 11)]
    assert sorted(map(part_of, came)) == [Part(4, 6), Part(10, 12)]
    assert read(data, "runs") == expected(data, "runs")


def test_an_update_changes_the_facts_of_runs_in_old_parts(tmp_path: Path, small: None) -> None:
    data = DataRoot.open(tmp_path)
    manifest = Manifest(tmp_path / "raw")
    manifest.add(manifest.message(one_run(1, auth="", review="")), checkpoint=True)
    for number in range(2, 9):
        manifest.add(manifest.message(one_run(number, ("b",))), checkpoint=True)
    list(publish_tables(data, ["runs"]))
    reviews = review_of(data)
    manifest.add(manifest.message(says("a", review="merged")))
    list(publish_tables(data, ["runs"]))
    assert read(data, "runs") == expected(data, "runs")
    assert (reviews["1"], review_of(data)["1"]) == ("", "merged")
    assert {key: value for key, value in review_of(data).items() if key != "1"} == {str(n): "" for n in range(2, 9)}


def review_of(data: DataRoot) -> dict[str, str]:
    return {row["build_uuid"]: row["review"] for row in rows_of(data, "runs")}
