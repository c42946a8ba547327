"""The order of a delivery's steps, with a broker that loses, refuses and acknowledges messages in any order."""

from __future__ import annotations

import gzip
import json
import random
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from ciml.events.cloudevents import FINISHED, STARTED, decode_message
from ciml.events.records import Message
from ciml.events.samples import End, Samples, decode
from ciml.limits import MAX_LABELS
from ciml.recorder.producer import Headers
from ciml.recorder.spool import delivery as module
from ciml.recorder.spool.delivery import Delivery
from ciml.recorder.spool.recording import End as CommandEnd
from ciml.recorder.spool.recording import Recording
from tests.durable import Messages, Steps
from tests.recorder.planted import T0_US, TELEMETRY, plant, planted_facts, taken

ENDED = CommandEnd(T0_US + 4_000_000, "FAILURE", {"exit_code": "3"})
LOG = "create job/zuul~planted~1/dstat-csv_log.txt.gz"
HEADER = TELEMETRY.partition(b"\n1")[0] + b"\n"


class Broker(Messages):
    """A broker in the place of a `Sender`'s; its messages are named by their topic and meaning."""

    def send(self, topic: str, key: bytes, value: bytes, headers: Headers, done: Callable[[str], None]) -> bool:
        if topic == "samples":
            content: Any = decode(value)
            kind = "end" if isinstance(content, End) else "samples"
            return self.produce(f"{kind} of start {content.recorder_us - T0_US}", content, done)
        event = decode_message(Message(0, value, tuple(headers)))
        return self.produce({STARTED: "started", FINISHED: "finished"}[event.type], event, done)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    clock = SimpleNamespace(now_s=100.0)
    monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: clock.now_s))
    return clock


def recorded(tmp_path: Path, starts: int, samples: int, **facts: Any) -> Recording:
    """A recording with ``samples`` samples of each start of its recorder."""
    plan = {"kafka": "k:9", "log_dir": str(tmp_path / "logs"), "mention": planted_facts(**facts)}
    folder = plant(tmp_path / "spool", **plan)
    log = b""
    lines = []
    for start in range(starts):
        lines.append(json.dumps({"offset": len(log), "recorder_us": T0_US + start}))
        rows = (f"{T0_US // 1_000_000 + start * samples + number}.5,{number},2,3\n" for number in range(samples))
        log += HEADER + "".join(rows).encode()
    (folder / "dstat-csv_log.txt").write_bytes(log)
    (folder / "starts").write_text("\n".join(lines) + "\n")
    return taken(folder)


def deliver(recording: Recording, broker: Broker, clock: SimpleNamespace, most: int = 2000) -> Delivery:
    """Step until everything has arrived; the broker acknowledges between steps."""
    delivery = Delivery(recording, broker, ENDED)  # type: ignore[arg-type]
    for _ in range(most):
        with Steps(str(recording.folder.path.parents[1] / "logs")).recording() as steps:
            steps.steps = broker.steps
            is_over = delivery.step()
        if is_over:
            assert not broker.waiting, "a delivery is over before Kafka has everything"
            return delivery
        broker.acknowledge()
        clock.now_s += 5.0
    raise AssertionError(delivery.failure or "the delivery does not end")


def test_order_of_the_steps_of_a_delivery(tmp_path: Path, clock: SimpleNamespace) -> None:
    broker = Broker()
    deliver(recorded(tmp_path, 2, 3), broker, clock)
    assert broker.steps == [
        "started", "samples of start 0", "samples of start 1", "acknowledge started",
        "acknowledge samples of start 0", "acknowledge samples of start 1", "end of start 0", "end of start 1", LOG,
        "finished", "acknowledge end of start 0", "acknowledge end of start 1", "acknowledge finished",
    ]  # fmt: skip


@pytest.mark.parametrize("seed", range(12))
def test_the_end_is_announced_after_all_samples_whatever_the_broker_does(
    tmp_path: Path, clock: SimpleNamespace, seed: int
) -> None:
    """Messages are refused, lost and acknowledged in any order: each sample arrives, and no end is early."""
    draw = random.Random(seed)
    starts = 1 + seed % 3
    recording = recorded(tmp_path, starts, draw.choice([0, 3, 900, 4000]))
    broker = Broker(draw, refuses=0.1, loses=0.2, keeps=0.5)
    deliver(recording, broker, clock)
    contents = [content for _, content in broker.stored]
    rows = {
        (part.recorder_us, number)
        for part in contents
        if isinstance(part, Samples)
        for number in np.asarray(part.sequence).tolist()
    }
    ends = {end.recorder_us: end.samples for end in contents if isinstance(end, End)}
    assert ends == {T0_US + start: sum(row[0] == T0_US + start for row in rows) for start in range(starts)}
    assert len(rows) == recording.log.read_bytes().count(b".5,")
    last_arrival = max(
        (place for place, step in enumerate(broker.steps) if step.startswith("acknowledge samples")), default=0
    )
    assert min(place for place, step in enumerate(broker.steps) if step.startswith("end of")) > last_arrival
    assert broker.steps.index(LOG) < broker.steps.index("finished")
    assert broker.steps[0] == "started"


def test_the_finished_event_has_the_log_and_the_labels_of_the_end(tmp_path: Path, clock: SimpleNamespace) -> None:
    """The labels of the end are kept where those of the run use up the limit."""
    recording = recorded(tmp_path, 1, 3, labels={f"label{number}": "x" for number in range(MAX_LABELS)})
    broker = Broker()
    deliver(recording, broker, clock)
    (run,) = dict(broker.stored)["finished"].run_facts
    assert run.labels["exit_code"] == "3"
    assert len(run.labels) == MAX_LABELS
    (log,) = (tmp_path / "logs").glob("*/*/*.gz")
    assert run.log_url.endswith(f"/zuul~planted~1/{log.name}")
    assert gzip.decompress(log.read_bytes()) == recording.log.read_bytes()


def test_a_failure_is_retried_after_five_seconds_and_not_before(tmp_path: Path, clock: SimpleNamespace) -> None:
    """The folder of the log cannot be written: the finished event waits for it."""
    recording = recorded(tmp_path, 1, 3)
    (tmp_path / "logs").write_text("a file, where a folder is to be")
    broker = Broker()
    delivery = Delivery(recording, broker, ENDED)  # type: ignore[arg-type]
    for _ in range(3):
        assert not delivery.step()
        broker.acknowledge()
    assert str(tmp_path / "logs") in delivery.failure
    (tmp_path / "logs").unlink()
    clock.now_s += 4.9
    assert not delivery.step()
    assert "finished" not in broker.steps
    clock.now_s += 0.2
    delivery.step()
    broker.acknowledge()
    assert delivery.step()
    assert broker.steps[-1] == "acknowledge finished"
