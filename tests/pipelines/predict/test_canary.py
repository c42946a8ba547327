"""A canary predicts its share of the changes, always all runs of a change; without one, the stable version does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from ciml.data_root import DataRoot
from ciml.errors import CimlError
from ciml.events.records import RunFacts
from ciml.manifest.log import ManifestLog
from ciml.services.options import PredictOptions
from ciml.serving.ledger import promote
from ciml.serving.predict.log import read_predictions
from ciml.serving.predict.predictor import Announcement, Predictor, PredictPolicy, place_of
from ciml.serving.predict.sources import ServedVersions
from ciml.serving.push import push
from ciml.serving.registry import CANARY, SHADOW, STABLE, Registry, Signature
from ciml.storage import open_store
from tests.pipelines.predict.predicting import BLESSED, World, batch, telemetry


def announced(number: int, change: str, project: str = "p") -> Announcement:
    facts = RunFacts(f"zuul~{number}~1", "job", project=project, change=change) if change else None
    return Announcement(0, 0, f"zuul~{number}~1", "job", "path", "", facts, None)


def test_all_runs_of_a_change_have_one_place_and_changes_are_spread_evenly() -> None:
    assert place_of(announced(1, "7")) == place_of(announced(2, "7")) != place_of(announced(3, "7", "q"))
    assert place_of(announced(1, "")) != place_of(announced(2, ""))
    places = [place_of(announced(1, str(change))) for change in range(2_000)]
    assert 0 <= min(places) < max(places) < 1
    assert 150 < sum(place < 0.1 for place in places) < 250


def split_predictor(world: World, share: float) -> Predictor:
    policy = PredictPolicy("m", canary_share=share)
    stable, canary = (ServedVersions(world.data, world.address, "m", label) for label in ("stable", CANARY))
    return Predictor(world.data, stable, policy, canary=canary)


def test_a_canary_predicts_its_share_while_there_is_one(world: World, folders: list[Path]) -> None:
    world.push(folders[0])
    runs = [f"zuul~{number}~1" for number in range(12)]
    messages = [world.put(run_id, telemetry(number, 20 + number)) for number, run_id in enumerate(runs)]
    both = split_predictor(world, 0.5)
    assert {one["version"] for one in both.predict(batch(messages)).predictions} == {1}
    push(world.data, "m", open_store(folders[1]), BLESSED, label=CANARY, check=False)
    world.server.poll()
    done = both.predict(batch(messages))
    assert sorted(one["run_id"] for one in done.predictions) == sorted(runs)
    by_place = {run_id: 2 if place_of(announced(number, "")) < 0.5 else 1 for number, run_id in enumerate(runs)}
    assert {one["run_id"]: one["version"] for one in done.predictions} == by_place
    assert set(by_place.values()) == {1, 2}
    assert {one["version"] for one in split_predictor(world, 1.0).predict(batch(messages)).predictions} == {2}
    both.close()


def test_a_broken_canary_stops_no_other_prediction(world: World, folders: list[Path]) -> None:
    world.push(folders[0])
    messages = [world.put(f"zuul~{number}~1", telemetry(number, 20 + number)) for number in range(4)]
    push(world.data, "m", open_store(folders[1]), BLESSED, label=CANARY, check=False)
    world.server.poll()
    both = split_predictor(world, 1.0)
    Path(world.data.models.url("m/2"), "assets", "definition.json").write_text("{}")
    assert [one["version"] for one in both.predict(batch(messages)).predictions] == [1] * 4
    both.close()


def test_a_shadow_of_the_stable_version_has_ids_of_its_own(world: World, folders: list[Path]) -> None:
    world.push(folders[0])
    promote(Registry(world.data, "m"), 1, Signature("ann", "try it"), label=SHADOW)
    world.server.poll()
    messages = batch([world.put("zuul~1~1", telemetry(1, 20))])
    ids = set()
    for label in (STABLE, SHADOW):
        served = ServedVersions(world.data, world.address, "m", label)
        (prediction,) = Predictor(world.data, served, PredictPolicy("m", label=label)).predict(messages).predictions
        ids.add(prediction["id"])
        served.close()
    assert len(ids) == 2


@pytest.mark.parametrize("more", [{"candidate": True}, {"label": "old"}])
def test_a_share_is_one_of_the_stable_versions_runs(tmp_path: Path, more: dict[str, Any]) -> None:
    given = {"data_path": str(tmp_path), "model": "m", "server": "localhost:1", "kafka": "localhost:2"}
    with pytest.raises(CimlError, match="--canary-share excludes --candidate and --label"):
        PredictOptions(**given, canary_share=0.1, **more).open()
    assert PredictOptions(**given, canary_share=0.1).open().policy.canary_share == 0.1


def test_late_predictions_are_read_without_the_early_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = ManifestLog(DataRoot.open(tmp_path).predictions)
    hour_us = 3_600_000_000
    for version in range(1, 41):
        predictions = [{"run_id": f"r{version}", "time_us": version * hour_us}]
        assert log.try_append(version, {"predictions": predictions, "time_us": version * hour_us})
    parsed: list[int] = []
    parse = ManifestLog.parse

    def counted(self: ManifestLog, version: int, data: bytes) -> Any:
        parsed.append(version)
        return parse(self, version, data)

    monkeypatch.setattr(ManifestLog, "parse", counted)
    late = [one["run_id"] for one in read_predictions(log.store, 38 * hour_us)]
    assert late == ["r38", "r39", "r40"]
    assert len(parsed) < 12
    assert len(list(read_predictions(log.store))) == 40
    assert len(list(read_predictions(log.store, 1))) == 40
    assert list(read_predictions(log.store, 50 * hour_us)) == []
