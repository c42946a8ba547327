"""`ciml topics adopt`: each manifest continues with a topic that was created again."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from ciml.cli.commands.operate.streams import topics
from ciml.data_root import DataRoot
from ciml.errors import EngineError, IntegrityError
from ciml.events.records import Batch, OffsetRange
from ciml.kafka import KafkaOptions
from ciml.pipelines.feedback import FeedbackConfig
from ciml.pipelines.ingest.committer import IngestConfig, committer
from ciml.pipelines.kafka.broker import Listing, list_topic
from ciml.pipelines.predict import PredictConfig
from ciml.runs.state import open_raw
from ciml.runs.verify import verify_raw
from ciml.services import adopt as adopt_module
from ciml.services.adopt import Adoption, adopt
from ciml.services.driver import drive
from ciml.services.feedback import FeedbackService
from ciml.services.ingest import IngestService
from ciml.services.options import LiveOptions
from ciml.services.predict import PredictService
from ciml.serving.predict.log import read_predictions
from ciml.serving.predict.predictor import PredictPolicy
from ciml.verdicts.feedback.config import load_feedback
from tests.pipelines.ingest.ingesting import MakeTopic, account, need_real, wait_for
from tests.pipelines.kafka.kafka_topics import delete, recreated, send_starts
from tests.pipelines.predict.predicting import World, telemetry
from tests.pipelines.predict.test_predict import announce
from tests.verdicts.feedback.test_service import failed, publish

pytestmark = pytest.mark.timeout(180)


def recreate(kafka: str, topic: str, partitions: int = 1) -> None:
    before = list_topic(KafkaOptions(kafka), topic).topic_id
    delete(KafkaOptions(kafka), topic)
    wait_for(lambda: recreated(KafkaOptions(kafka), topic, partitions))

    def is_new() -> bool:
        try:
            return list_topic(KafkaOptions(kafka), topic).topic_id != before
        except EngineError:
            return False

    wait_for(is_new)


def run(*words: str) -> str:
    done = CliRunner().invoke(topics, ["adopt", *words], standalone_mode=False)
    assert done.exception is None, done.exception
    return done.output


def broken(kafka: str, topic: str, number: int) -> None:
    from confluent_kafka import Producer

    producer = Producer({"bootstrap.servers": kafka})
    for _ in range(number):
        producer.produce(topic, b"no event", partition=0)
    assert producer.flush(30) == 0


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
    name, raw = topic(1, "events"), DataRoot.open(tmp_path).raw
    config = IngestConfig(raw, kafka=KafkaOptions(kafka), topic=name, runs_topic="")

    def ingest() -> None:
        drive(IngestService(config), until="end")

    send_starts(kafka, name, 0, 5)
    broken(kafka, name, 2)
    ingest()
    recreate(kafka, name)
    broken(kafka, name, 1)  # at an offset of an event of the old topic
    send_starts(kafka, name, 0, 7)  # of which five are repeats
    broken(kafka, name, 1)
    with pytest.raises(IntegrityError, match=f"created again.*: ciml topics adopt {name} --data-path DATA$"):
        ingest()
    before = account(raw)[0].version
    words = (name, "--data-path", str(tmp_path), "--kafka", kafka)
    assert f"the raw manifest would continue with the new topic as {name}@2; read of the old one: [0] 7" in run(
        *words, "--dry-run"
    )
    assert account(raw)[0].version == before
    assert "Its unread messages are lost" in run(*words)
    assert "nothing to adopt" in run(*words)
    ingest()
    state, _ = account(raw)
    assert state.counts == Counter(
        {("dead_letter", "broken_json"): 4, ("ignored", "not_finished"): 7, ("repeat", "event"): 5}
    )
    covered = {of: list(ranges) for of, _, ranges in state.partitions()}
    assert covered == {name: [(0, 7)], f"{name}@2": [(0, 9)]}
    found = verify_raw(raw)
    assert found.findings == []
    recreate(kafka, name)  # and once more
    send_starts(kafka, name, 0, 1, first=100)
    run(*words)
    ingest()
    assert account(raw)[0].counts["ignored", "not_finished"] == 8
    assert account(raw)[0].generation(name) == f"{name}@3"


@pytest.mark.engines
def test_predict_reads_the_new_topic_of_runs_and_predicts_nothing_twice(
    world: World, folders: list[Path], kafka: str, topic: MakeTopic
) -> None:
    need_real(kafka)
    world.push(folders[0])
    runs = topic(1, "runs")
    policy = PredictPolicy("m")
    config = PredictConfig(world.data, world.address, policy, runs, topic(1, "predictions"), kafka=KafkaOptions(kafka))
    announced = [world.put(f"zuul~{number}~1", telemetry(number)) for number in range(6)]
    announce(kafka, runs, list(announced[:4]))
    drive(PredictService(config), until="end")
    recreate(kafka, runs)
    announce(kafka, runs, list(announced))
    with pytest.raises(IntegrityError, match=f"ciml topics adopt {runs} --data-path DATA$"):
        drive(PredictService(config), until="end")
    assert [(each.manifest, each.generation) for each in adopt(world.data, KafkaOptions(kafka), runs)] == [
        ("predictions", f"{runs}@2")
    ]
    drive(PredictService(config), until="end")
    assert Counter(each["run_id"] for each in read_predictions(world.data.predictions)) == Counter(
        f"zuul~{number}~1" for number in range(6)
    )


@pytest.mark.engines
def test_feedback_reads_the_new_topic_of_predictions_and_says_nothing_twice(
    kafka: str, topic: MakeTopic, tmp_path: Path
) -> None:
    need_real(kafka)
    predictions, data = topic(1, "predictions"), DataRoot.open(tmp_path / "data")
    (tmp_path / "feedback.toml").write_text(
        'active_models = ["*"]\nmin_passing_runs = 0\nsettle_s = 0.1\nsettle_most_s = 0.2\n'
        '[[system]]\nkind = "github"\nname = "hub"\nsources = ["github"]\n'
        'api = "http://127.0.0.1:1"\nsecret_file = "token"\n'
    )
    config = FeedbackConfig(data, load_feedback(tmp_path / "feedback.toml"), predictions, kafka=KafkaOptions(kafka))
    shown: list[Any] = []

    def feedback() -> None:
        drive(FeedbackService(config, lambda entry, message: shown.append(message)), until=0.5)

    one, two = failed(1), failed(2, build_name="lint")
    publish(kafka, predictions, one)
    feedback()
    recreate(kafka, predictions)
    publish(kafka, predictions, one, two)
    with pytest.raises(IntegrityError, match=f"ciml topics adopt {predictions} --data-path DATA$"):
        feedback()
    assert adopt(data, KafkaOptions(kafka), predictions) == [Adoption("feedback", f"{predictions}@2", {0: 1})]
    feedback()
    with FeedbackService(config).committing.state() as state:
        assert (state.verdicts["taken"], state.verdicts["repeat"]) == (2, 1)


@pytest.mark.engines
def test_live_reads_the_new_topic_of_samples_without_a_manifest(
    kafka: str, topic: MakeTopic, data: DataRoot, tmp_path: Path
) -> None:
    need_real(kafka)
    samples = topic(1, "samples")
    options = LiveOptions(data_path=data.url, kafka=kafka, datasets=("providers",), samples_topic=samples)
    live = options.service()
    live.open()
    recreate(kafka, samples)
    with pytest.raises(IntegrityError, match=f"ciml topics adopt {samples} --data-path DATA$"):
        live.observe()
    assert "nothing to adopt" in run(samples, "--data-path", data.url, "--kafka", kafka)
    options.service().observe()


@pytest.mark.engines
def test_a_topic_that_is_shorter_than_what_was_read_is_adopted(
    kafka: str, topic: MakeTopic, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As after the broker was restored from an older copy: the topic keeps its id."""
    need_real(kafka)
    name, raw = topic(1, "events"), DataRoot.open(tmp_path).raw
    config = IngestConfig(raw, kafka=KafkaOptions(kafka), topic=name, runs_topic="")
    send_starts(kafka, name, 0, 5)
    drive(IngestService(config), until="end")
    present = list_topic(KafkaOptions(kafka), name)
    older = type(present)(name, present.topic_id, {0: (0, 2)})
    for module in ("ciml.services.service", "ciml.services.adopt"):
        monkeypatch.setattr(f"{module}.list_topic", lambda *_: older)
    with pytest.raises(
        IntegrityError, match=f"it is not the topic that was read before.*: ciml topics adopt {name} --data-path DATA$"
    ):
        IngestService(config).observe()
    assert [each.generation for each in adopt(DataRoot.open(tmp_path), KafkaOptions(kafka), name)] == [f"{name}@2"]
    monkeypatch.undo()
    drive(IngestService(config), until="end")
    assert account(raw)[0].counts == Counter({("ignored", "not_finished"): 5, ("repeat", "event"): 5})
    assert verify_raw(raw).findings == []
