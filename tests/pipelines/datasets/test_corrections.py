"""Corrections from one end to the other: an event or a listing says otherwise, and a new version of a span follows."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ciml.data_root import DataRoot
from ciml.datasets.definition import DatasetDefinition
from ciml.datasets.state import SpanVersion
from ciml.events.cloudevents import finished_event
from ciml.events.listing import open_listing
from ciml.events.records import RunFacts
from ciml.kafka import KafkaOptions
from ciml.pipelines.backfill.backfill import backfill
from ciml.pipelines.datasets.update import create_dataset, update_dataset, verify_dataset
from ciml.pipelines.ingest.committer import IngestConfig
from ciml.services.driver import drive
from ciml.services.ingest import IngestService
from ciml.transforms.examples.spans import read_span
from ciml.transforms.fetch.policy import FetchPolicy
from tests.corpus import CORPUS
from tests.pipelines.backfill.backfilling import config as backfill_config
from tests.pipelines.ingest.ingesting import MakeTopic, account
from tests.pipelines.ingest.scenario import corpus_facts

RUNS = 8


def send(kafka: str, topic: str, said: Sequence[RunFacts]) -> None:
    from confluent_kafka import Producer

    producer = Producer({"bootstrap.servers": kafka})
    for facts in said:
        value, headers = finished_event(facts)
        producer.produce(topic, value, headers=headers)
    assert producer.flush(30) == 0


def labels(data: DataRoot, span: SpanVersion) -> dict[str, int]:
    table = read_span(data.dataset("status").store, span)
    return dict(zip(table["run_id"].to_pylist(), table["label"].to_pylist(), strict=True))


def files(data: DataRoot) -> dict[str, bytes]:
    root = data.dataset("status").store
    return {path: root.read(path) for path in root.list() if path.startswith("span-")}


@pytest.mark.engines
def test_a_later_outcome_makes_a_new_version_and_leaves_the_old_one(
    kafka: str, topic: MakeTopic, tmp_path: Path
) -> None:
    data, name = DataRoot.open(tmp_path / "data"), topic(1, "events")
    ours = IngestConfig(data.raw, name, "", kafka=KafkaOptions(kafka), fetch=FetchPolicy(file_roots=(str(CORPUS),)))
    said = [facts.replace(log_url=path.as_uri()) for facts, path in corpus_facts(RUNS)]
    failed = [facts if number % 2 else facts.replace(outcome="failure") for number, facts in enumerate(said)]
    definition = {"name": "status", "class_label": "status", "span_runs": RUNS, "sample_interval": "10s"}
    create_dataset(data, DatasetDefinition.from_json(definition))

    send(kafka, name, failed)
    drive(IngestService(ours), until="end")
    (first,) = update_dataset(data.dataset("status")).sealed
    assert labels(data, first) == {facts.run_id: 1 - number % 2 for number, facts in enumerate(said)}
    before = files(data)

    # by an event: the first run passed after all
    send(kafka, name, [said[0]])
    drive(IngestService(ours), until="end")
    (second,) = update_dataset(data.dataset("status")).sealed
    assert (second.span, second.version) == (first.span, first.version + 1)
    assert labels(data, second) == {**labels(data, first), said[0].run_id: 0}

    # by a listing: the second one did not
    line = json.loads(_line(said[1]))
    listing = tmp_path / "corrected.jsonl"
    listing.write_text(json.dumps({**line, "build_uuid": said[1].build_uuid, "result": "FAILURE"}))
    tally = backfill(backfill_config(CORPUS, data.url), open_listing(str(listing)))
    assert tally.counts == {("correction", "outcome"): 1}
    (third,) = update_dataset(data.dataset("status")).sealed
    assert (third.span, third.version) == (first.span, first.version + 2)
    assert labels(data, third) == {**labels(data, second), said[1].run_id: 1}

    # nothing but the labels is another, and every file of the old versions is as it was
    tables = [read_span(data.dataset("status").store, each) for each in (first, third)]
    for column in tables[0].column_names:
        if column not in ("label", "label_name", "outcome", "result"):
            assert tables[0][column].equals(tables[1][column]), column
    assert np.sum(np.array(tables[0]["label"]) != np.array(tables[1]["label"])) == 2
    now = files(data)
    assert {path: now[path] for path in before} == before
    assert verify_dataset(data.dataset("status")) == []
    assert account(data.raw)[0].counts == {("run", ""): RUNS, ("correction", "outcome"): 2}
    assert update_dataset(data.dataset("status")).sealed == ()


def _line(facts: RunFacts) -> Any:
    native = facts.build_uuid.rpartition(".")[0]
    return next(line for line in (CORPUS / "builds.jsonl").read_text().splitlines() if native in line)
