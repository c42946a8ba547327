"""The stream gives a model the neighbours that a data set has: those in the raw manifest before each run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from ciml.data_root import DataRoot
from ciml.datasets.definition import DatasetDefinition, ResolvedDefinition
from ciml.events.records import RunFacts
from ciml.runs.neighbours import Neighbours
from ciml.runs.run_log import StoredRunLog
from ciml.serving.predict import answers as stored
from ciml.serving.predict.answers import StoredNeighbours
from ciml.serving.predict.assets import ModelAssets
from tests.durable import Steps
from tests.pipelines.predict.predicting import telemetry
from tests.runs.scenes import RawStore
from tests.transforms.samples import make_facts

RESOLVED = ResolvedDefinition(
    definition=DatasetDefinition(name="causes", class_label="cause", context=("neighbours",)),
    columns=("load avg:1m",),
    features=("1m", "neighbours:failed", "neighbours:share"),
    classes=("code", "machine"),
    windows=3,
)
MINUTE_US = 60_000_000
NOON_US = 1_772_000_000_000_000


def ended(number: int, outcome: str, minute: int) -> tuple[RunFacts, pa.Table]:
    end_us = NOON_US + minute * MINUTE_US
    facts = make_facts(number, outcome=outcome, change=str(number), provider="aws", end_us=end_us)
    return facts.replace(start_us=end_us - MINUTE_US), telemetry(number, 5)


def test_neighbours_follow_the_manifest_as_it_grows(tmp_path: Path) -> None:
    data = DataRoot.open(tmp_path)
    raw, nearby = RawStore(data), StoredNeighbours(data)
    assert nearby is not None
    ids = [ended(number, "failure", 0)[0].run_id for number in range(6)]
    raw.add([ended(0, "failure", 0), ended(1, "success", 10), ended(2, "failure", 20)])
    assert nearby.of(ids[:4]) == [Neighbours(0, 0), None, Neighbours(1, 2), None]
    raw.add([ended(3, "failure", 70)])  # the first two ended more than an hour before, the third did not
    raw.add([ended(4, "failure", 71)])
    assert nearby.of([ids[4], ids[3], ids[2]]) == [Neighbours(2, 2), Neighbours(1, 1), Neighbours(1, 2)]
    fresh = StoredNeighbours(data)
    assert fresh is not None
    assert fresh.of(ids) == nearby.of(ids)
    assert not (tmp_path / "predictions").exists()  # a reader alone leaves no bookmark
    plain = RESOLVED.replace(definition=RESOLVED.definition.replace(context=None), features=("1m",))
    assert not ModelAssets(plain, None).takes("neighbours")


def test_a_process_replaces_the_bookmark_each_time_it_has_read_enough(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stored, "_BOOKMARK_RUNS", 3)
    data = DataRoot.open(tmp_path)
    raw, nearby = RawStore(data), StoredNeighbours(data, saves_bookmark=True)
    saved: list[int] = []
    for number in range(8):
        raw.add([ended(number, "failure", 10 * number)])
        with Steps(data.predictions.url()).recording() as steps:
            nearby.of([])
        saved += [number] * len(steps.steps)
    assert saved == [2, 5]


def test_another_process_continues_from_the_bookmark(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stored, "_BOOKMARK_RUNS", 3)
    data = DataRoot.open(tmp_path)
    raw = RawStore(data)
    ids = [ended(number, "failure", 0)[0].run_id for number in range(8)]
    for number in range(7):
        raw.add([ended(number, "failure", 10 * number)])
        stored.StoredNeighbours(data, saves_bookmark=True).of(ids)  # a process each
    read: list[int] = []
    since = StoredRunLog.since

    def counted(self: StoredRunLog, version: int) -> Any:
        for each in since(self, version):
            read.append(each[0])
            yield each

    monkeypatch.setattr(StoredRunLog, "since", counted)
    raw.add([ended(7, "failure", 70)])
    found = stored.StoredNeighbours(data).of(ids)
    assert read == [7, 8]
    (tmp_path / "predictions" / stored.BOOKMARK).unlink()
    assert stored.StoredNeighbours(data).of(ids) == found
    assert read == [7, 8, *range(1, 9)]
    assert found[-1] == Neighbours(5, 5)
