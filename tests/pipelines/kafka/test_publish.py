"""Announcements: each committed run once, whoever dies between a commit and its announcement."""

from __future__ import annotations

from pathlib import Path
from unittest.mock import Mock

import pytest

from ciml.errors import CimlError, EngineError, IntegrityError
from ciml.events.records import Batch, Message, OffsetRange
from ciml.kafka import KafkaOptions
from ciml.manifest.log import Delta, ManifestLog
from ciml.pipelines.ingest.committer import Committer, render_runs
from ciml.pipelines.kafka import publish
from ciml.pipelines.kafka.publish import VERSION, Announcement, Projection, Projections, Share, projection
from ciml.storage import LocalStore, open_store
from tests.durable import each_step
from tests.messages import published
from tests.pipelines.ingest.ingesting import MakeTopic, need_real, one_batch
from tests.pipelines.kafka.kafka_topics import recreate
from tests.pipelines.kafka.recorded_topic import Topic


@pytest.fixture
def committed(tmp_path: Path) -> Committer:
    """A manifest with two runs in two deltas, and one delta without any."""
    ours = Committer(open_store(tmp_path / "raw"))
    ours.commit([one_batch(0)])
    ours.commit([one_batch(1, 1)])
    ours.commit([Batch(OffsetRange("t", "T", 0, 2, 9))])
    return ours


def test_a_broker_that_is_not_there_is_an_engine_error(committed: Committer) -> None:
    with pytest.raises(EngineError, match="does not answer"):
        Projection(committed.log, "runs", render_runs, KafkaOptions("127.0.0.1:1", timeout_s=0.5)).announce()


@pytest.mark.engines
def test_a_fenced_publisher_repeats_nothing_and_a_recreated_topic_gets_all(
    kafka: str, topic: MakeTopic, committed: Committer
) -> None:
    need_real(kafka)
    name, options = topic(1, "runs"), KafkaOptions(kafka)

    def versions() -> list[bytes | None]:
        return [dict(message.headers)[VERSION] for message in published(kafka, name, "runs")]

    old, new = (Projection(committed.log, name, render_runs, options) for _ in range(2))
    old.announce()
    committed.commit([one_batch(9, 2)])
    new.announce()
    committed.commit([one_batch(10, 3)])
    assert old.announce() == 5  # fenced, it starts again from what the topic says
    assert new.announce() == 5
    assert versions() == [b"1", b"2", b"4", b"5"]
    recreate(options, name)
    committed.commit([one_batch(11, 4)])
    assert new.announce() == 6
    assert versions() == [b"1", b"2", b"4", b"5", b"6"]
    assert new.exactly_once


# --- the steps of a publication


def manifest(folder: Path, *deltas: list[str]) -> ManifestLog:
    """A manifest whose deltas name the keys of their messages."""
    log = ManifestLog(LocalStore(folder))
    for version, keys in enumerate(deltas, 1):
        assert log.try_append(version, {"time_us": 0, "keys": keys})
    return log


def render(delta: Delta, *headers: tuple[str, bytes]) -> list[Announcement]:
    return [(key.encode(), b"{}", headers) for key in delta["keys"]]


def project(log: ManifestLog, share: Share | None = None) -> int:
    """Publish in a process of its own: one without a cursor."""
    headers = [share.header] if share else []
    return Projection(log, "runs", lambda delta: render(delta, *headers), KafkaOptions("k:1"), share).announce()


def keys_of(topic: Topic) -> list[str]:
    return [(message.key or b"").decode() for message in topic.messages]


DELTAS = [["a"], ["b", "c", "d"], [], ["e"]]
#: A producer fences the earlier one before it reads the cursor. One transaction holds whole deltas.
PUBLISHED = ["fence ciml.runs", *(f"produce {key}" for key in "abcd"), "commit 4", "produce e", "commit 1"]


def test_a_publisher_that_dies_before_any_step_publishes_each_message_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(publish, "_TRANSACTION_MESSAGES", 2)
    log = manifest(tmp_path, *DELTAS)
    with Topic().recording() as topic:
        assert project(log) == 4
    assert topic.steps == PUBLISHED
    for index in each_step(len(PUBLISHED), few=False):
        topic = Topic(index)
        with topic.recording():
            project(log)
        topic.is_dead = False
        with topic.recording():
            assert project(log) == 4
        assert keys_of(topic) == ["a", "b", "c", "d", "e"]


def test_another_publisher_before_any_step_publishes_no_message_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other one is in the same place: it has a new delta, and fences the first."""
    monkeypatch.setattr(publish, "_TRANSACTION_MESSAGES", 2)
    for index in range(len(PUBLISHED)):
        log = manifest(tmp_path / str(index), *DELTAS)

        def other(log: ManifestLog = log) -> None:
            assert log.try_append(5, {"time_us": 0, "keys": ["f"]})
            project(log)

        with Topic(index, other).recording() as topic:
            project(log)
        assert keys_of(topic) == ["a", "b", "c", "d", "e", "f"]


def test_shares_of_a_manifest_have_cursors_of_their_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(publish, "_FIRST_READ_BACK", 2)
    log, other_log = manifest(tmp_path / "a", *DELTAS), manifest(tmp_path / "b", ["x"], ["y"])
    first, second = (Share(name, ("model", name.encode())) for name in ("one", "two"))
    with Topic().recording() as topic:
        project(log, first)
        for _ in range(3):
            project(log, second)  # it reads past the messages of the first
            project(log, first)
        assert [dict(message.headers)["model"] for message in topic.messages] == [b"one"] * 5 + [b"two"] * 5
        for share in (first, second, Share("three", ("model", b"three")), None):
            with pytest.raises(IntegrityError, match="holds another manifest"):
                project(other_log, share)
        cached = {id(projection(log, "runs", render, KafkaOptions("k:1"), share)) for share in (first, second, None)}
        assert len(cached) == 3


def test_messages_of_other_programs_do_not_hide_the_cursor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(publish, "_FIRST_READ_BACK", 2)
    log = manifest(tmp_path, *DELTAS)
    with Topic().recording() as topic:
        project(log)
        for _ in range(3):
            topic.stored.append(("", Message(topic.end, b"x")))
            topic.end += 1
        project(log)
        assert len(topic.messages) == 5 + 3


def test_a_topic_that_fails_does_not_stop_the_others() -> None:
    failing, working = Mock(), Mock()
    failing.announce.side_effect = EngineError("away")
    working.announce.return_value = 7
    with pytest.raises(CimlError, match="away"):
        Projections([failing, working]).announce()
    working.announce.assert_called_once()
