"""A committing stage maintains its manifest where its configuration asks for it: on Dataflow no supervisor does."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from ciml.data_root import DataRoot
from ciml.digest import canonical_json
from ciml.events.listing import open_listing
from ciml.events.records import Batch, OffsetRange
from ciml.kafka import KafkaOptions
from ciml.manifest.checkpoints import Limits
from ciml.manifest.log import ManifestLog
from ciml.pipelines import predict, processor
from ciml.pipelines.backfill.backfill import backfill
from ciml.pipelines.ingest import committer as ingest
from ciml.pipelines.ingest.committer import IngestConfig
from ciml.pipelines.ingest.replay import ReplayConfig, replay
from ciml.pipelines.processor_beam import Commit
from ciml.serving.predict.log import Predicted
from ciml.serving.predict.predictor import PredictPolicy
from ciml.transforms.fetch.policy import FetchPolicy
from tests.pipelines.backfill.backfilling import listed
from tests.pipelines.predict.committing import Predictions

KAFKA = KafkaOptions("kafka:9092")
LIMITS = Limits(deltas=3)


@pytest.mark.parametrize("maintains", [False, True])
@pytest.mark.parametrize("kind", ["ingest", "predict"])
def test_a_checkpoint_is_made_by_the_stage_that_commits(
    kind: str, maintains: bool, data: DataRoot, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = data.raw if kind == "ingest" else data.predictions
    shared = processor._replicas._objects
    if kind == "ingest":
        monkeypatch.setitem(shared, (os.getpid(), (store.root, "raw")), ingest.Committer(store, limits=LIMITS))
        stage = Commit(ingest.IngestProcessor(IngestConfig(store, kafka=KAFKA, runs_topic="", maintains=maintains)))
    else:
        key = (store.root, "predictions of m")
        monkeypatch.setitem(shared, (os.getpid(), key), Predictions(store, "m", LIMITS))
        config = predict.PredictConfig(data, "models:8500", PredictPolicy("m"), kafka=KAFKA, maintains=maintains)
        stage = Commit(predict.PredictProcessor(config))
    for offset in range(8):
        covers = OffsetRange("topic", "", 0, offset, offset + 1)
        found = ingest.seal(Batch(covers)) if kind == "ingest" else canonical_json(Predicted(covers).to_json())
        assert list(stage.process(("key", [found]))) == [offset + 1]
    assert bool(ManifestLog(store).checkpoints()) == maintains


@pytest.mark.parametrize("kind", ["backfill", "replay"])
def test_a_checkpoint_is_made_by_a_command_that_commits_much(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ciml.events.listing.BLOCK_LINES", 1)
    made = listed(tmp_path / "logs", runs=12, tricks=False)
    store = DataRoot.open(tmp_path / "data").raw
    shared = processor._replicas._objects
    limits = Limits(deltas=100) if kind == "replay" else LIMITS
    monkeypatch.setitem(shared, (os.getpid(), (store.root, "raw")), ingest.Committer(store, limits=limits))
    if kind == "replay":  # of dead letters: no log is allowed
        backfill(made.config(tmp_path / "data", fetch=FetchPolicy(), take_missing=True), open_listing(str(made.path)))
        monkeypatch.setitem(shared, (os.getpid(), (store.root, "raw")), ingest.Committer(store, limits=LIMITS))
        replay(ReplayConfig(store, fetch=FetchPolicy(file_roots=(str(made.folder),)), together=1))
    else:
        backfill(made.config(tmp_path / "data", commit_lines=1), open_listing(str(made.path)))
    assert ManifestLog(store).checkpoints()
