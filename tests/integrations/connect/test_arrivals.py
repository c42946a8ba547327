"""What is said of the first events of a source: what the adapter makes of them, and what ingest commits."""

from __future__ import annotations

import re
import time
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka import Producer

from ciml.data_root import DataRoot
from ciml.events.records import Message, Origin, Outcome, RawFile, RunFacts, Trust
from ciml.kafka import KafkaOptions
from ciml.manifest.log import ManifestLog
from ciml.pipelines.kafka.broker import make_topic
from ciml.services import arrivals
from ciml.services.arrivals import REMEDIES, Effect, decode_arrival, effect_of, follow_commits, read_arrivals, remedy
from tests.integrations import github_samples
from tests.integrations.deliveries import message_of
from tests.integrations.samples import SHA, delivery, gerrit, zuul_build, zuul_message

DOCS = Path(__file__).parents[3] / "docs"
FACTS = RunFacts("zuul~u~1", "u", "unit", source="zuul", outcome="failure", phase="finished")


def report(
    result: str = "SUCCESS", log_url: str | None = "https://logs.example.org/a/", source: str = "zuul"
) -> Message:
    """A message of Zuul about one build."""
    build = zuul_build(uuid="u", result=result, log_url=log_url)
    return message_of("zuul", delivery(zuul_message(build)), source)


def parts(found: Message) -> tuple[Effect, ...]:
    return decode_arrival("ci-events", 2, found).effects


def test_a_run_is_said_with_the_address_of_its_log() -> None:
    (run,) = parts(report())
    assert (run.pending, run.final, run.rejected) == ("zuul~u~1", True, False)
    assert run.text == "run zuul~u~1: unit, success; its log is fetched from https://logs.example.org/a/"


def test_a_ping_is_no_end() -> None:
    (ping,) = parts(message_of("github", github_samples.delivery("ping", {"zen": "x"})))
    assert (ping.final, ping.rejected) == (False, False)
    assert ping.text == "the event is ignored, no_run: a ping only tests the webhook"


def test_a_dead_letter_says_what_to_do() -> None:
    (letter,) = parts(report(log_url=None))
    assert (letter.final, letter.rejected) == (True, True)
    assert letter.text.splitlines() == [
        "run zuul~u~1 (unit, success) is a dead letter, missing_field: log_url", f"    {remedy('missing_field')}"
    ]  # fmt: skip
    (letter,) = parts(Message(7, b"{", report().headers))
    assert letter.text.startswith("the event is a dead letter, broken_json")


def test_an_update_names_its_subject() -> None:
    merged = delivery(gerrit("change-merged"))
    (update,) = parts(message_of("gerrit", merged, "zuul"))
    assert (update.final, update.updates) == (False, True)
    assert update.text == (
        "update of the runs of change:demo%2Fapp/7/2: review merged, target main; "
        f"merged:demo%2Fapp/main/{SHA}: review merged"
    )


@pytest.mark.parametrize(
    ("outcome", "text"),
    [
        ({"kind": "run", "trust": Trust(True, "gated", "p")}, "is stored, trusted by the rule 'gated'"),
        ({"kind": "run", "trust": Trust(False, "no rule", "p")}, "is stored, not trusted: 'no rule'"),
        ({"kind": "ignored", "reason": "skipped"}, "is ignored, skipped"),
        ({"kind": "repeat"}, "repeat"),
    ],
)
def test_what_ingest_committed(outcome: dict[str, Any], text: str) -> None:
    said = effect_of(Outcome(origin=Origin("t", 0, 1), mention=FACTS, **outcome)).text
    assert said.startswith("run zuul~u~1 (unit, failure)")
    assert said.endswith(text)


def test_a_deferred_run_is_tried_again_and_needs_no_replay() -> None:
    said = effect_of(Outcome("deferred", Origin("t", 0, 1), mention=FACTS, reason="log_not_found", detail="404"))
    assert (said.final, said.pending) == (False, "zuul~u~1")
    assert "ingest tries again" in said.text
    assert "replay" not in said.text
    assert remedy("log_not_found").endswith("; then: ciml dead-letters replay")


def test_remedies_are_for_reasons_that_exist() -> None:
    documented = set(re.findall(r"`(\w+)`", "".join(path.read_text() for path in DOCS.rglob("*.md"))))
    assert REMEDIES.keys() <= documented
    assert "docs/dead-letters.md" in remedy("unheard_of")


def delta(version: int, **lists: list[Outcome]) -> dict[str, Any]:
    """Return a delta; the first one covers the offset 5."""
    names = ("runs", "repeats", "corrections", "ignored", "dead_letters", "deferred", "closes")
    records = {name: [one.to_json() for one in lists.get(name, [])] for name in names}
    offsets = {"ci-events": {"id": "", "partitions": {"0": [[5, 6]]}}} if version == 1 else {}
    return {"version": version, "time_us": 1, "offsets": offsets, **records}


def test_commits_are_followed_until_each_run_is_settled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arrivals, "_COMMIT_POLL_S", 0.05)
    origin = Origin("ci-events", 0, 5)
    log = ManifestLog(DataRoot.open(str(tmp_path)).raw)
    waits = Outcome("deferred", origin, "e", FACTS, "log_not_found", attempts=1, first_seen_us=1, not_before_us=2)
    stranger = Outcome("ignored", Origin("ci-events", 0, 55), "f", FACTS.replace(run_id="zuul~v~1"), "skipped")
    assert log.try_append(1, delta(1, deferred=[waits], ignored=[stranger]))
    effects = follow_commits(str(tmp_path), origin, time.monotonic() + 20)
    assert not next(effects).final
    file = RawFile("runs/x.parquet", "0" * 64, 1, 1)
    run = Outcome("run", origin, "e", FACTS, trust=Trust(True, "gated", "p"), file=file, attempts=2)
    assert log.try_append(2, delta(2, runs=[run]))
    (settled,) = effects
    assert settled.final
    assert "is stored, trusted" in settled.text


def test_nothing_is_committed_before_the_time_is_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arrivals, "_COMMIT_POLL_S", 0.05)
    assert list(follow_commits(str(tmp_path / "new"), Origin("ci-events", 0, 5), time.monotonic() + 0.1)) == []


@pytest.mark.engines
def test_only_events_of_the_source_and_its_adapter_arrive(kafka: str) -> None:
    options = KafkaOptions.of(kafka)
    topic = f"arrivals-{time.time_ns()}"
    make_topic(options, topic, 2)
    producer = Producer({"bootstrap.servers": kafka})

    def send(found: Message, partition: int) -> None:
        producer.produce(topic, found.value, headers=list(found.headers), partition=partition)
        assert producer.flush(20) == 0

    old = time.time()
    send(report(source="other"), 0)
    send(message_of("gerrit", delivery({"type": "ref-updated"}), "zuul"), 0)
    send(report("FAILURE"), 1)
    found = next(read_arrivals(options, topic, "zuul", "zuul", old - 60, time.monotonic() + 30))
    assert (found.origin.partition, found.effects[0].pending) == (1, "zuul~u~1")
    assert list(read_arrivals(options, topic, "zuul", "zuul", time.time() + 60, time.monotonic() + 1)) == []
