"""A trial of predictions: `ciml predict stream` and a model server as processes, and announcements of stored runs."""

from __future__ import annotations

import json
import random
import signal
import sys
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ciml.data_root import DataRoot
from ciml.engines.processes import free_ports
from ciml.serving.predict.log import read_predictions
from ciml.serving.push import push
from ciml.storage import open_store
from ciml.transforms.examples.prepare import prepare_many
from tests.faults.children import Child, Program
from tests.faults.scene import Scene
from tests.faults.verdict import Verdict
from tests.messages import published
from tests.pipelines.predict.predicting import BLESSED, telemetry
from tests.serving.models_fixture import DEFINITION, direct, save_model

_RUNS, _RATE = 200, 10.0
_HOLD_S = 300.0
_FREEZES, _DEATHS, _KILLS = 2, 3, 2


@dataclass
class Predicting:
    """The processes of a trial.

    Attributes:
      data: its data root.
      port: of the model server's gRPC.
      runs, predictions: topics.
    """

    scene: Scene
    data: DataRoot
    port: int
    runs: str
    predictions: str
    server: Child | None = None
    stream: Child | None = None

    def serve(self) -> None:
        """Start the model server. It imports TensorFlow by itself: a forked process must not have it."""
        arguments = ("--grpc-port", str(self.port), "--rest-port", "0", "--poll-seconds", "0.2")
        self.server = Program(
            [sys.executable, "-m", "ciml.cli.main", "serve", "--data-path", self.data.url, *arguments],
            self.scene.folder / "logs" / "serve.log",
        )

    def predict(self) -> None:
        """Start the stream."""
        self.stream = self.scene.ciml(
            "predict", "stream", "--model", "m", "--server", f"127.0.0.1:{self.port}", "--data-path", self.data.url,
            "--kafka", self.scene.broker, "--runs-topic", self.runs, "--predictions-topic", self.predictions,
            name="predict",
        )  # fmt: skip

    def end(self) -> None:
        """End both."""
        for each in (self.stream, self.server):
            if each is not None:
                each.kill()


def trial(seed: int, scene: Scene) -> Verdict:
    """The model server is killed and frozen, and the stream killed, while runs are announced."""
    verdict, chance = Verdict(), random.Random(seed)
    data = DataRoot.open(scene.folder / "data")
    model = save_model(scene.folder / "model", 1)
    push(data, "m", open_store(model), BLESSED, check=False)
    tables = {f"zuul~{number}~1": telemetry(number, 20 + number % 50) for number in range(_RUNS)}
    one = Predicting(scene, data, free_ports(1)[0], scene.topic("runs"), scene.topic("predictions"))
    try:
        one.serve()
        one.predict()
        _disturb(one, _announce(one, tables), chance)
        settled = _wait(lambda: len(_found(one)) >= _RUNS)
        code = one.stream.poll() if one.stream is not None else None
        verdict.expect(
            settled, f"I2: {len(_found(one))} of {_RUNS} predicted ({code}): {one.stream and one.stream.said()}"
        )
        _wait(lambda: len(published(scene.broker, one.predictions, "predictions")) >= _RUNS, 60.0)
        _judge(verdict, one, tables, model)
    finally:
        one.end()
    verdict.count("runs", _RUNS)
    verdict.count("kills", _DEATHS + _KILLS)
    verdict.count("faults", _FREEZES)
    return verdict


def _announce(one: Predicting, tables: dict[str, Any]) -> Any:
    """Store the runs, and return what announces the next ones."""
    from confluent_kafka import Producer

    from tests.pipelines.predict.predicting import World

    world = World(one.data, None)  # type: ignore[arg-type]  # without a server in this process
    values = [world.put(run_id, table) for run_id, table in tables.items()]
    producer = Producer({"bootstrap.servers": one.scene.broker, "log_level": 0})

    def some(seconds: float) -> bool:
        """Announce for so many seconds; return whether any are left."""
        until = time.monotonic() + seconds
        while values and time.monotonic() < until:
            producer.produce(one.runs, values.pop(0))
            producer.poll(1 / _RATE)
        producer.flush(30)
        return bool(values)

    return some


def _disturb(one: Predicting, announce: Any, chance: random.Random) -> None:
    faults = ["death"] * _DEATHS + ["freeze"] * _FREEZES + ["kill"] * _KILLS
    chance.shuffle(faults)
    for fault in faults:
        announce(chance.uniform(1.0, 3.0))
        if fault == "kill" and one.stream is not None:
            one.stream.crash()
            one.predict()
        elif fault == "death" and one.server is not None:
            one.server.kill()
            announce(chance.uniform(0.0, 6.0))
            one.serve()
        elif one.server is not None:
            one.server.send(signal.SIGSTOP)
            announce(chance.uniform(3.0, 12.0))
            one.server.send(signal.SIGCONT)
    while announce(5.0):
        pass


def _found(one: Predicting) -> list[dict[str, Any]]:
    return list(read_predictions(one.data.predictions))


def _wait(condition: Any, most_s: float = _HOLD_S) -> bool:
    until = time.monotonic() + most_s
    while not condition():
        if time.monotonic() > until:
            return False
        time.sleep(0.5)
    return True


def _judge(verdict: Verdict, one: Predicting, tables: dict[str, Any], model: Path) -> None:
    """Each run has one prediction, that of the model called directly, and one message; none was given up."""
    found = {each["run_id"]: each for each in _found(one)}
    times = Counter(each["run_id"] for each in _found(one))
    verdict.expect(times == Counter(list(tables)), f"I2: predictions by run: {times.most_common(3)}")
    inputs, n_windows, _ = prepare_many(list(tables.values()), DEFINITION)
    answers = direct(model, inputs, n_windows)
    for run_id, wanted in zip(tables, answers, strict=True):
        given = found.get(run_id)
        same = given is not None and np.allclose(list(given["probabilities"].values()), wanted, atol=1e-5)
        verdict.expect(same, f"I2: the prediction of {run_id} is not that of the model")
    messages = Counter(
        json.loads(each.value or b"")["run_id"] for each in published(one.scene.broker, one.predictions, "predictions")
    )
    verdict.expect(messages == times, f"I11: messages by run: {messages.most_common(3)}")
    gone = [delta for _, delta in _deltas(one) if delta["unpredictable"]]
    verdict.expect(not gone, f"I2: given up: {[each['unpredictable'] for each in gone][:3]}")


def _deltas(one: Predicting) -> list[tuple[int, dict[str, Any]]]:
    from ciml.manifest.log import ManifestLog

    return list(ManifestLog(one.data.predictions).since(0))
