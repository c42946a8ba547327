"""A committing stage maintains its manifest where its configuration asks for it: on Dataflow no supervisor does."""

from __future__ import annotations

import os

import pytest

from ciml.data_root import DataRoot
from ciml.digest import canonical_json
from ciml.events.records import Batch, OffsetRange
from ciml.kafka import KafkaOptions
from ciml.manifest.checkpoints import Limits
from ciml.manifest.log import ManifestLog
from ciml.pipelines import predict, processor
from ciml.pipelines.ingest import committer as ingest
from ciml.pipelines.ingest.committer import IngestConfig
from ciml.pipelines.processor_beam import Commit
from ciml.serving.predict.log import Predicted
from ciml.serving.predict.predictor import PredictPolicy
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
