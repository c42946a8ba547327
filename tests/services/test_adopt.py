"""`ciml topics adopt`: each manifest continues with a topic that was created again."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
from click.testing import CliRunner
from confluent_kafka import Producer

from ciml.cli.commands.operate.streams import topics
from ciml.data_root import DataRoot
from ciml.errors import IntegrityError
from ciml.events.records import Batch, Message, OffsetRange
from ciml.kafka import KafkaOptions
from ciml.pipelines.feedback import Judge, feedback_replica
from ciml.pipelines.ingest.committer import IngestConfig, committer
from ciml.pipelines.kafka.broker import Listing
from ciml.runs.state import open_raw
from ciml.runs.verify import verify_raw
from ciml.services import adopt as adopt_module
from ciml.services.adopt import Adoption, adopt
from ciml.services.driver import drive
from ciml.services.ingest import IngestService
from ciml.serving.predict.log import Predicted
from tests.pipelines.ingest.ingesting import MakeTopic, account, need_real
from tests.pipelines.kafka.kafka_topics import recreate, send_starts
from tests.pipelines.predict.predicting import Predictions
from tests.verdicts.feedback.reviews import feedback
from tests.verdicts.feedback.worlds import take

pytestmark = pytest.mark.timeout(180)


@pytest.mark.parametrize(
    "present", [Listing("t", "U", {0: (0, 3)}), Listing("t", "T", {0: (0, 2)})], ids=["other", "older"]
)
def test_each_manifest_that_read_another_topic_continues_with_the_present_one(
    present: Listing, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The topic was created again, or the broker restored from an older copy."""
    data = DataRoot.open(tmp_path)
    covers = OffsetRange("t", "T", 0, 0, 7)
    monkeypatch.setattr(adopt_module, "list_topic", lambda *_: present)
    assert adopt(data, KafkaOptions("none:1"), "t") == []
    committer(data.raw).commit([Batch(covers)])
    record = {"id": "0" * 32, "run_id": "zuul~1~1", "model": "m", "version": 1, "offset": 0, "announced_us": 1}
    assert Predictions(data.predictions, "m").commit([Predicted(covers, [record])])
    take(feedback_replica(data), covers, [Message(6, b"no prediction")], Judge(feedback()), 1)
    expected = [Adoption(manifest, "t@2", {0: 7}) for manifest in ("raw", "predictions", "feedback")]
    assert adopt(data, KafkaOptions("none:1"), "t", dry_run=True) == expected
    assert adopt(data, KafkaOptions("none:1"), "t") == expected
    assert adopt(data, KafkaOptions("none:1"), "t") == []


def test_what_a_running_ingest_commits_meanwhile_is_of_the_same_topic(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each listing is older than the next commit, so the state has to be read before it."""
    data = DataRoot.open(tmp_path)
    ends = iter(range(1, 100))

    def list_before_ingest_continues(kafka: KafkaOptions, topic: str) -> Listing:
        end = next(ends)
        committer(data.raw).commit([Batch(OffsetRange(topic, "T", 0, end - 1, end))])
        return Listing(topic, "T", {0: (0, end - 1)})

    committer(data.raw).commit([Batch(OffsetRange("t", "T", 0, 0, next(ends)))])
    monkeypatch.setattr(adopt_module, "list_topic", list_before_ingest_continues)
    assert adopt(data, KafkaOptions("none:1"), "t") == []


@pytest.mark.parametrize("overtaken_at", [None, 1, 2, 3])
def test_two_processes_adopt_a_topic_once(
    overtaken_at: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another process adopts it before any of the listings of the first."""
    data, kafka = DataRoot.open(tmp_path), KafkaOptions("none:1")
    committer(data.raw).commit([Batch(OffsetRange("t", "T", 0, 0, 7))])
    listings = 0

    def list_after_another(options: KafkaOptions, topic: str) -> Listing:
        nonlocal listings
        listings += 1
        if listings == overtaken_at:
            adopt(data, kafka, topic)
        return Listing(topic, "U", {0: (0, 3)})

    monkeypatch.setattr(adopt_module, "list_topic", list_after_another)
    adoptions = adopt(data, kafka, "t")
    assert adoptions in ([], [Adoption("raw", "t@2", {0: 7})])
    _, state = open_raw(data.raw)
    assert (state.generation("t"), state.topic_id("t"), state.version) == ("t@2", "U", 2)
    assert adopt(data, kafka, "t") == []


@pytest.mark.engines
def test_ingest_continues_and_accounts_for_both_topics(kafka: str, topic: MakeTopic, tmp_path: Path) -> None:
    need_real(kafka)
    name = topic(1, "events")
    raw = DataRoot.open(tmp_path).raw
    options = KafkaOptions(kafka)
    producer = Producer({"bootstrap.servers": kafka})

    def ingest() -> None:
        drive(IngestService(IngestConfig(raw, kafka=options, topic=name, runs_topic="")), until="end")

    def adopted(*more: str) -> str:
        words = ["adopt", name, "--data-path", str(tmp_path), "--kafka", kafka, *more]
        return CliRunner().invoke(topics, words, standalone_mode=False, catch_exceptions=False).output

    def broken() -> None:
        producer.produce(name, b"no event", partition=0)
        assert producer.flush(30) == 0

    send_starts(kafka, name, 0, 5)
    broken()
    ingest()
    recreate(options, name)
    broken()  # at an offset of an event of the old topic
    send_starts(kafka, name, 0, 7)  # of which five are repeats
    with pytest.raises(IntegrityError, match=f"created again.*: ciml topics adopt {name} --data-path DATA$"):
        ingest()
    version = account(raw)[0].version
    line = f"the raw manifest would continue with the new topic as {name}@2; read of the old one: [0] 6"
    assert line in adopted("--dry-run")
    assert account(raw)[0].version == version
    assert "Its unread messages are lost" in adopted()
    assert "nothing to adopt" in adopted()
    ingest()
    state, _ = account(raw)
    expected = {("dead_letter", "broken_json"): 2, ("ignored", "not_finished"): 7, ("repeat", "event"): 5}
    assert state.counts == Counter(expected)
    covered = {of: list(ranges) for of, _, ranges in state.partitions()}
    assert covered == {name: [(0, 6)], f"{name}@2": [(0, 8)]}
    assert verify_raw(raw).findings == []
