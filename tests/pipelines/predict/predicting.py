"""A data root with raw runs, a model server beside it, announcements, and commits without a service."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from ciml.data_root import DataRoot
from ciml.digest import telemetry_digest
from ciml.events.records import Batch, Message, OffsetRange
from ciml.kafka import KafkaOptions
from ciml.manifest.checkpoints import Limits
from ciml.manifest.log import ManifestLog
from ciml.manifest.replica import LogReplica
from ciml.pipelines.predict import PredictConfig
from ciml.runs.writer import write_run
from ciml.serving.client import ModelClient
from ciml.serving.predict.log import Predicted, PredictionState, prediction_checkpoints, reconcile
from ciml.serving.predict.predictor import Predictor, PredictPolicy
from ciml.serving.predict.sources import ServedVersions
from ciml.serving.push import push
from ciml.serving.registry import Decision
from ciml.serving.server.server import ModelServer
from ciml.storage import Store, open_store
from ciml.transforms.examples.prepare import prepare
from tests.serving.models_fixture import DEFINITION, direct

BLESSED = Decision(True)
START = datetime(2026, 3, 4, 23, 59, 30, tzinfo=UTC)


def telemetry(seed: int, rows: int = 60, columns: tuple[str, ...] = DEFINITION.columns) -> pa.Table:
    random = np.random.default_rng(seed)
    return pa.table(
        {
            "time": pa.array([START + timedelta(seconds=row) for row in range(rows)], pa.timestamp("us", "UTC")),
            "boot": pa.array([row == 0 for row in range(rows)], pa.bool_()),
            "other": pa.array([0.5] * rows, pa.float64()),
            **{name: pa.array(random.gamma(2.0, 20.0, rows)) for name in columns},
        }
    )


def server_predictor(
    data: DataRoot, address: str, policy: PredictPolicy, clock: Callable[[], float] = time.time
) -> Predictor:
    """Return a predictor by a model server."""
    source = ServedVersions(data, address, policy.model, policy.label, policy.client)
    return Predictor(data, source, policy, clock)


def client_of(predictor: Predictor) -> ModelClient:
    assert isinstance(predictor.source, ServedVersions)
    return predictor.source.client


class World:
    """A data root with raw runs, and a model server beside it."""

    def __init__(self, data: DataRoot, server: ModelServer) -> None:
        self.data, self.server = data, server
        self.tables: dict[str, pa.Table] = {}

    def put(self, run_id: str, table: pa.Table, job: str = "job") -> bytes:
        """Stores a run; returns its announcement."""
        digest = telemetry_digest(run_id, table)
        path = f"runs/job={job}/date=2026-03-04/{run_id}.{digest[:16]}.parquet"
        self.data.raw.replace(path, write_run(table))
        self.tables[run_id] = table
        facts = {"run_id": run_id, "build_name": job, "path": path, "digest": digest, "raw_version": 1}
        return json.dumps(facts).encode()

    def push(self, folder: Path, model: str = "m", facts: dict[str, Any] | None = None) -> int:
        version = push(self.data, model, open_store(folder), BLESSED, check=False, facts=facts).version
        self.server.poll()
        return version

    def expected(self, folder: Path, run_id: str, definition: Any = DEFINITION) -> np.ndarray:
        inputs, n_windows = prepare(self.tables[run_id], definition)
        return direct(folder, inputs[None], np.array([n_windows], "i4"))[0]

    def predictor(self, policy: PredictPolicy | None = None, clock: Callable[[], float] = time.time) -> Predictor:
        """Return a predictor by the model server."""
        return server_predictor(self.data, self.address, policy or PredictPolicy("m"), clock)

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.server.grpc_port}"


def predict_config(world: World, kafka: str, topic: Callable[..., str], **changes: Any) -> PredictConfig:
    """Return the configuration of predictions by the model ``m``, with topics of their own."""
    topics = {"runs_topic": topic(1, "runs"), "predictions_topic": topic(1, "predictions")}
    given = {"server": world.address, "policy": PredictPolicy("m"), "cycle_messages": 7, **topics, **changes}
    return PredictConfig(world.data, kafka=KafkaOptions(kafka), **given)


def batch(values: list[bytes | None], start: int = 0) -> Batch:
    messages = [Message(start + at, value, timestamp_ms=1_000_000) for at, value in enumerate(values)]
    return Batch(OffsetRange("runs", "T", 0, start, start + len(values)), messages=messages)


class Predictions(LogReplica[PredictionState]):
    """A replica of the manifest, for one model."""

    def __init__(self, predictions: Store, model: str, limits: Limits | None = None) -> None:
        super().__init__(ManifestLog(predictions), prediction_checkpoints(model), limits)

    def commit(self, ranges: Iterable[Predicted]) -> int | None:
        """Commit the uncovered part of ``ranges``. Return the version, or None if nothing was left."""
        predicted = list(ranges)
        return self.append(lambda state: reconcile(state, predicted, int(self.log.clock() * 1e6)))
