"""What untrusted events say of runs, from the broker to the snapshot: it changes no trusted run and its label."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from ciml.data_root import DataRoot
from ciml.datasets.definition import DatasetDefinition
from ciml.events.cloudevents import finished_event
from ciml.events.records import RunFacts
from ciml.kafka import KafkaOptions
from ciml.manifest.log import ManifestLog
from ciml.pipelines.datasets.update import create_dataset, update_dataset, verify_dataset
from ciml.pipelines.ingest.committer import IngestConfig
from ciml.services.driver import drive
from ciml.services.ingest import IngestService
from ciml.training.data.snapshot import make_snapshot
from ciml.transforms.fetch.policy import FetchPolicy
from ciml.trust import TrustPolicy
from tests.corpus import CORPUS
from tests.pipelines.ingest.ingesting import MakeTopic, account
from tests.pipelines.ingest.scenario import corpus_facts
from tests.runs.scenes import RawStore
from tests.transforms.samples import make_facts, table

RUNS = 6


class Ci:
    """Sends events of one topic, ingests them, and tells what a snapshot learns."""

    def __init__(self, kafka: str, topic: str, folder: Path) -> None:
        self.data = DataRoot.open(folder / "data")
        options = KafkaOptions(kafka)
        self._config = IngestConfig(
            self.data.raw, topic, "", kafka=options, fetch=FetchPolicy(file_roots=(str(CORPUS),))
        )
        definition = {"name": "status", "class_label": "status", "span_runs": RUNS, "sample_interval": "10s"}
        create_dataset(self.data, DatasetDefinition.from_json(definition))

    def says(self, *facts: RunFacts) -> None:
        from confluent_kafka import Producer

        producer = Producer({"bootstrap.servers": self._config.kafka.bootstrap})
        for each in facts:
            value, headers = finished_event(each)
            producer.produce(self._config.topic, value, headers=headers)
        assert producer.flush(30) == 0
        drive(IngestService(self._config), until="end")

    def learns(self) -> dict[str, tuple[str, str]]:
        """run id -> (class, the rule that let it in)."""
        update_dataset(self.data.dataset("status"), seal=True)
        update_dataset(self.data.dataset("status"))
        assert verify_dataset(self.data.dataset("status")) == []
        snapshot = make_snapshot(self.data.dataset("status"), TrustPolicy.load())
        return {run.run_id: (snapshot.resolved.classes[run.label], run.rule) for run in snapshot.runs()}


def gated(count: int) -> list[RunFacts]:
    outcomes: Sequence[Any] = ["failure", "success"]
    return [
        each.replace(log_url=path.as_uri(), pipeline="gate", outcome=outcomes[number % 2], result="")
        for number, (each, path) in enumerate(corpus_facts(count))
    ]


@pytest.mark.engines
def test_an_untrusted_event_without_a_log_relabels_nothing(kafka: str, topic: MakeTopic, tmp_path: Path) -> None:
    ci, runs = Ci(kafka, topic(1, "events"), tmp_path), gated(RUNS)
    ci.says(*runs)
    before = ci.learns()
    assert before[runs[0].run_id] == ("failed", "gated")
    untrusted = runs[0].replace(pipeline="check", log_url="")
    ci.says(untrusted.replace(outcome="success", result="SUCCESS"))
    assert ci.learns() == before
    ci.says(untrusted.replace(outcome="cancellation", result="ABORTED"))
    assert ci.learns() == before
    state, _ = account(ci.data.raw)
    assert state.counts["ignored", "less_trusted"] == 2
    trusted = runs[0].replace(log_url="", outcome="cancellation", result="ABORTED")
    ci.says(trusted)
    assert ci.learns() == {run_id: label for run_id, label in before.items() if run_id != runs[0].run_id}


@pytest.mark.engines
def test_a_run_that_an_untrusted_event_claimed_first_is_reclaimed(kafka: str, topic: MakeTopic, tmp_path: Path) -> None:
    ci, runs = Ci(kafka, topic(1, "events"), tmp_path), gated(RUNS)
    claim = runs[0].replace(pipeline="check", log_url=runs[1].log_url, outcome="success", result="SUCCESS")
    ci.says(claim, *runs[1:])
    before = ci.learns()
    assert runs[0].run_id not in before
    ci.says(runs[0])
    assert ci.learns() == {**before, runs[0].run_id: ("failed", "gated")}
    (row,) = [row for _, delta in ManifestLog(ci.data.raw).since(0) for row in delta.get("reclaims", ())]
    assert (row["mention"]["run_id"], row["trust"]["rule"]) == (runs[0].run_id, "gated")
    assert account(ci.data.raw)[0].totals()["reclaim"] == 1


def test_corrections_that_older_versions_did_not_judge_are_judged_by_their_facts(tmp_path: Path) -> None:
    data = DataRoot.open(tmp_path)
    raw = RawStore(data)
    create_dataset(data, DatasetDefinition.from_json({"name": "cpu", "span_runs": 4, "max_windows": 4}))
    times = [1_795_521_600_000_000 + second * 1_000_000 for second in range(20)]
    facts = [make_facts(number, outcome="failure", pipeline="gate") for number in range(1, 5)]
    raw.add([(each, table(times, usr=list(range(20)), load=[1.0] * 20)) for each in facts])
    raw.add(corrections=[facts[0].replace(outcome="success", pipeline="check"), facts[1].replace(outcome="success")])
    path = raw.log.path(2)
    stored = raw.log.read(2)
    for record in stored["corrections"]:
        del record["trust"]
    raw.log.store.delete(path)
    assert raw.log.try_append(2, {key: value for key, value in stored.items() if key != "version"})
    raw.add([(make_facts(9, outcome="success"), table(times, usr=list(range(20)), load=[2.0] * 20))])
    update_dataset(data.dataset("cpu"))
    (span,) = update_dataset(data.dataset("cpu")).state.latest()
    assert [run.label_name for run in span.runs] == ["failed", "passed", "failed", "failed"]
