"""Runs sent as live samples, and a consumer of the published windows and examples."""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa

from ciml.datasets.definition import DatasetDefinition, resolve
from ciml.events.records import RunFacts
from ciml.events.samples import End, Samples, encode
from ciml.kafka import KafkaOptions
from ciml.pipelines.kafka.broker import list_topic
from ciml.pipelines.kafka.reader import Reader
from ciml.pipelines.live import LiveConfig
from ciml.telemetry import telemetry_columns
from ciml.transforms.examples.downsample import downsample
from ciml.transforms.live.windows import LiveDataset
from tests.corpus import STABLE
from tests.messages import check_message
from tests.transforms.live.live_scenes import Disorder, arrivals, recorded
from tests.transforms.samples import corpus, make_examples

#: Facts and telemetry of runs by run id.
Known = Mapping[str, tuple[RunFacts, pa.Table]]
RANK = {"early": 0, "final": 1, "late": 1}


def datasets(**definitions: dict[str, Any]) -> tuple[LiveDataset, ...]:
    """Data sets of the corpus, by name and keys."""
    runs, tables, _ = corpus(STABLE)
    columns = [telemetry_columns(each.column_names) for each in tables]
    out = []
    for name, keys in definitions.items():
        definition = DatasetDefinition.from_json({"name": name, "class_label": "project", **keys})
        out.append(LiveDataset(name, resolve(definition, columns, runs)))
    return tuple(out)


USUAL: dict[str, dict[str, Any]] = {
    "load": {"sample_interval": "1s", "features_regex": "(usr|1min)"},
    "spread": {
        "sample_interval": "7s", "sample_statistic": "std", "features_regex": "(usr|read)", "count_first_sample": False,
    },
}  # fmt: skip


def replayed(count: int, seed: int, disorder: Disorder | None = None) -> list[tuple[str, Samples | End]]:
    """(run id, message) of so many runs that began within ten minutes, in the order of their arrival."""
    rng = np.random.default_rng(seed)
    runs, tables, _ = corpus(STABLE)
    chosen = rng.choice(len(runs), count, replace=False) if count < len(runs) else np.arange(len(runs))
    found = []
    for at in chosen.tolist():
        arriving = arrivals(recorded(runs[at].run_id, tables[at]), rng, disorder or Disorder())
        begin = int(arriving[0][0]) - int(rng.uniform(0, 600e6))
        found += [(when - begin, runs[at].run_id, message) for when, message in arriving]
    return [(run_id, message) for _, run_id, message in sorted(found, key=lambda one: one[0])]


def send(broker: str, topic: str, messages: Iterable[tuple[str, Samples | End | bytes]], partitions: int = 1) -> None:
    from confluent_kafka import Producer

    producer = Producer({"bootstrap.servers": broker, "linger.ms": 5})
    for run_id, message in messages:
        value = message if isinstance(message, bytes) else encode(message)
        producer.produce(topic, value, key=run_id, partition=zlib.crc32(run_id.encode()) % partitions)
        producer.poll(0)
    assert producer.flush(30) == 0


@dataclass
class Kept:
    """What a consumer keeps: of each window and each example the newest revision, and of equal ones the last word.

    Attributes:
      windows: by (run id, data set), then by number.
      examples: by (run id, data set).
      dead_letters: all of them.
      repeats: how many messages said what was known.
    """

    kafka: KafkaOptions
    config: LiveConfig
    windows: dict[tuple[str, str], dict[int, dict[str, Any]]] = field(default_factory=dict)
    examples: dict[tuple[str, str], dict[str, Any]] = field(default_factory=dict)
    dead_letters: list[dict[str, Any]] = field(default_factory=list)
    repeats: int = 0
    _at: dict[tuple[str, int], int] = field(default_factory=dict)
    _readers: dict[tuple[str, int], Reader] = field(default_factory=dict)

    def look(self) -> Kept:
        """Read new messages."""
        topics = (
            ("windows", self.config.windows_topic), ("live-examples", self.config.examples_topic),
            ("live-dead-letters", self.config.dead_letters_topic),
        )  # fmt: skip
        for schema, topic in topics:
            for partition, (first, end) in list_topic(self.kafka, topic).bounds.items():
                key = topic, partition
                reader = self._readers.setdefault(key, Reader(self.kafka, topic, partition))
                reader.seek(max(first, reader.position))
                while reader.position < end:
                    for message in reader.read(1000, 5):
                        check_message(schema, message)
                        self.take(topic, message.key or b"", message.value or b"")
        return self

    def take(self, topic: str, key: bytes, data: bytes) -> None:
        value: dict[str, Any] = json.loads(data)
        if topic == self.config.dead_letters_topic:
            self.dead_letters.append(value)
            return
        assert key == value["run_id"].encode()
        whose = value["run_id"], value["dataset"]
        if topic == self.config.examples_topic:
            before = self.examples.get(whose)
            if before is None or _age(before) <= _age(value):
                self.repeats += before == value
                self.examples[whose] = value
            return
        windows = self.windows.setdefault(whose, {})
        if (before := windows.get(value["number"])) is not None:
            assert before["day"] == value["day"]
            if before["revision"] == value["revision"]:
                assert before["values"] == value["values"]
                self.repeats += before == value
            if (before["revision"], RANK[before["pane"]]) > (value["revision"], RANK[value["pane"]]):
                return
        windows[value["number"]] = value

    def over(self) -> dict[str, str]:
        """Return the standing of each run that is over in every data set, with all windows final.

        Topics are read one after the other, so an example may be seen before the last of its windows.
        """
        found: dict[str, set[str]] = {}
        for whose, example in self.examples.items():
            windows = self.windows.get(whose, {})
            whole = len(windows) >= example["n_windows"] and all(one["pane"] != "early" for one in windows.values())
            found.setdefault(whose[0], set()).add(example["standing"] if whole else "running")
        return {run_id: words.pop() for run_id, words in found.items() if len(words) == 1 and "running" not in words}

    def ended(self) -> set[str]:
        """The runs of `over` that have ended."""
        return {run_id for run_id, word in self.over().items() if word == "ended"}

    def close(self) -> None:
        for reader in self._readers.values():
            reader.close()


def _age(example: dict[str, Any]) -> tuple[int, bool]:
    return example["revision"], example["standing"] != "running"


def assert_equals_batch(
    kept: Kept, run_ids: Iterable[str], sets: Sequence[LiveDataset], known: Known | None = None
) -> int:
    """The last windows and examples are those that batch makes; returns how many examples were compared.

    ``known`` has the runs, by default those of the corpus.
    """
    known = known or {run.run_id: (run, table) for run, table in zip(*corpus(STABLE)[:2], strict=True)}
    compared = 0
    for run_id in run_ids:
        run, table = known[run_id]
        for dataset in sets:
            made = make_examples([run], [table], dataset.resolved)
            example = kept.examples[run_id, dataset.name]
            assert (example["standing"], example["missing"]) == ("ended", 0)
            assert example["definition"] == dataset.digest
            if made.excluded:
                assert example["excluded"]["reason"] == made.excluded[0].reason
                continue
            assert example["digest"] == made.table.column("digest")[0].as_py(), (run_id, example)
            windows = downsample([table], dataset.resolved)
            assert np.array(example["values"], np.float32).tobytes() == windows.values.tobytes()
            last = [value for _, value in sorted(kept.windows[run_id, dataset.name].items())]
            assert {value["pane"] for value in last} <= {"final", "late"}
            values = np.array([value["values"] for value in last], np.float32)[: dataset.resolved.windows]
            assert values.tobytes() == windows.values.tobytes()
            compared += 1
    return compared
