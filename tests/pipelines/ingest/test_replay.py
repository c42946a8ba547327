"""Replay: a dead letter is closed once, by its outcome under the present configuration."""

from __future__ import annotations

import json
import shutil
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from ciml.data_root import DataRoot
from ciml.events import cloudevents as events
from ciml.events.cloudevents import finished_event, run_event
from ciml.events.listing import open_listing
from ciml.events.records import Batch, Message, OffsetRange, RunFacts
from ciml.kafka import KafkaOptions
from ciml.limits import MAX_MESSAGE_BYTES
from ciml.pipelines import processor
from ciml.pipelines.backfill.backfill import backfill
from ciml.pipelines.ingest.committer import Committer, committer, render_dead_letters
from ciml.pipelines.ingest.replay import ReplayConfig, Replayed, find_open, preview, replay
from ciml.pipelines.kafka.publish import Projection
from ciml.runs.dead_letters import Choice, all_dead_letters
from ciml.transforms.fetch.policy import FetchPolicy
from ciml.transforms.ingest.decode import decode
from ciml.trust import TrustPolicy
from tests.durable import Steps, each_step
from tests.messages import check_message
from tests.pipelines.backfill.backfilling import listed
from tests.pipelines.ingest.ingesting import Place, account, raw_rows
from tests.pipelines.ingest.scenario import corpus_facts
from tests.pipelines.kafka.recorded_topic import Topic

TOPIC = "ci-events"


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


LATER = "dev.ciml.run.over.v2"


def understood(monkeypatch: pytest.MonkeyPatch) -> None:
    """From now on the decoder knows a type of events that it did not know."""
    monkeypatch.setitem(events.PHASES, LATER, "finished")


def of_a_later_type(*facts: RunFacts, **how: Any) -> tuple[bytes, Any]:
    value, headers = finished_event(*facts, **how)
    return value.replace(events.FINISHED.encode(), LATER.encode()), headers


def test_a_message_that_the_decoder_understands_now_becomes_all_its_runs(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = [place.facts(0), place.facts(1, log=False), place.facts(2, outcome="cancellation", result="ABORTED")]
    said = of_a_later_type(*runs, event_id="x")
    place.take(said, said, finished_event(place.facts(3)))
    assert place.counts == {("dead_letter", "unknown_type"): 2, ("run", ""): 1}
    again = replay(place.replay_config())
    assert (again.tried, again.closed, again.still) == (2, 0, {"unknown_type": 2})
    version = account(place.raw)[0].version
    understood(monkeypatch)
    found = replay(place.replay_config())
    assert (found.tried, found.closed, found.still, found.complete) == (2, 2, {}, True)
    expected = {
        ("run", ""): 1,
        ("dead_letter", "log_not_found"): 1,
        ("ignored", "cancelled"): 1,
        ("repeat", "event"): 3,
    }
    assert found.became == expected
    assert place.counts == {**expected, ("run", ""): 2}
    assert account(place.raw)[0].version == version + 1
    # it opens a new dead letter
    place.log_arrives(1)
    assert replay(place.replay_config()).became == {("run", ""): 1}
    assert replay(place.replay_config()).tried == 0
    assert place.counts == {("run", ""): 3, ("ignored", "cancelled"): 1, ("repeat", "event"): 3}
    dead_letters = all_dead_letters(committer(place.raw).log, Choice())
    became = {dead_letter.key[0].offset: dead_letter.became for dead_letter in dead_letters}
    assert became[1] == ("repeat event", "repeat event", "repeat event")


def test_what_is_allowed_today_is_fetched_today(place: Place) -> None:
    place.take(finished_event(place.facts(0)), fetch=FetchPolicy())
    assert place.counts == {("dead_letter", "address_not_allowed"): 1}
    still = replay(place.replay_config(fetch=FetchPolicy()))
    assert still.still == {"address_not_allowed": 1}
    assert still.details == {"address_not_allowed": "the file is not below an allowed root"}
    untrusted = TrustPolicy.parse('[[rule]]\nname = "none"\ntrusted = false')
    assert replay(place.replay_config(trust=untrusted)).became == {("run", ""): 1}
    assert place.counts == {("run", ""): 1}
    assert account(place.raw)[0].trust == {(False, "none"): 1}


def test_a_dead_letter_that_was_deferred_before_needs_no_message(place: Place) -> None:
    from ciml.runs.state import retry
    from ciml.transforms.fetch.fetch import shared_fetcher

    facts, policy = place.facts(0, log=False), FetchPolicy(file_roots=(str(place.logs),), delays_s=(0.0,))
    value, headers = finished_event(facts)
    batch = decode(Batch(OffsetRange(TOPIC, "T", 0, 0, 1), [Message(0, value, tuple(headers))]))
    ours = committer(place.raw)
    ours.commit([shared_fetcher(policy).fetch(batch, 1)])
    with ours.state() as state:
        (deferred,) = state.deferred.values()
    ours.commit([shared_fetcher(policy).fetch(Batch(None, pending_runs=[retry(deferred)]), 2)])
    assert place.counts == {("dead_letter", "log_not_found"): 1}
    place.log_arrives(0)
    assert replay(place.replay_config()).became == {("run", ""): 1}
    (row,) = [run for delta in account(place.raw)[1] for run in delta["runs"]]
    assert (row["attempts"], row["first_seen_us"]) == (3, 1)


def test_a_run_that_has_its_row_by_now_closes_its_dead_letters(place: Place) -> None:
    gone = place.facts(0, log=False)
    broken = finished_event(gone, event_id="c")
    place.take(
        finished_event(gone, event_id="a"),
        finished_event(gone.replace(outcome="failure", result="FAILURE"), event_id="b"),
        (broken[0].replace(b'"success"', b'"so so"'), broken[1]),
    )
    place.log_arrives(0)
    other = gone.replace(log_url=place.facts(1).log_url)
    place.take(finished_event(other, event_id="d"))
    assert place.counts == {("dead_letter", "log_not_found"): 2, ("dead_letter", "bad_field"): 1, ("run", ""): 1}
    found = replay(place.replay_config())
    assert found.became == {("repeat", "other_log"): 1, ("correction", "outcome"): 1, ("repeat", "run"): 1}
    assert place.counts == {("run", ""): 1, **found.became}


def test_a_source_that_had_another_name_keeps_its_run_ids(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    source = "https://zuul.example.org"
    gone = place.facts(0, log=False, source=source)
    place.take(finished_event(gone), of_a_later_type(place.facts(1, source=source)), names={source: "ci"})
    place.log_arrives(0)
    understood(monkeypatch)
    replay(place.replay_config(names=((source, "ci"),)))
    assert sorted(raw_rows(account(place.raw)[1])) == sorted(f"ci~{corpus_facts(2)[n][0].build_uuid}~1" for n in (0, 1))
    gone = place.facts(2, log=False, source=source)
    place.take(finished_event(gone), names={source: "ci"})
    place.log_arrives(2)
    assert replay(place.replay_config()).closed == 1  # although no source is named: the dead letter has its run
    assert f"ci~{gone.build_uuid}~1" in raw_rows(account(place.raw)[1])


def test_what_cannot_be_tried_says_why(place: Place) -> None:
    large = (b"x" * (MAX_MESSAGE_BYTES + 1), [])
    signed = place.facts(0)
    secret = signed.replace(log_url="http://127.0.0.1:1/a?X-Amz-Signature=s3cr3t")
    place.take(large, finished_event(secret), (None, []), (b"{", []))
    assert place.counts == {
        ("dead_letter", "too_large"): 1, ("dead_letter", "address_not_allowed"): 1, ("dead_letter", "tombstone"): 1,
        ("dead_letter", "broken_json"): 1,
    }  # fmt: skip
    seen = preview(place.replay_config())
    assert (seen.total, seen.untried) == (4, {"not_held": 1, "secret_not_held": 1})
    found = replay(place.replay_config())
    assert found.still == {"not_held": 1, "secret_not_held": 1, "tombstone": 1, "broken_json": 1}
    assert (found.tried, found.closed) == (4, 0)


def test_a_large_message_is_found_beside_the_manifest(place: Place) -> None:
    labels = {f"label-{number}": "x" * 1000 for number in range(40)}
    gone = place.facts(0, log=False, labels=labels)
    place.take(finished_event(gone))
    (dead_letter,) = [record for delta in account(place.raw)[1] for record in delta["dead_letters"]]
    assert "object" in dead_letter["payload"]
    place.log_arrives(0)
    path = dead_letter["payload"]["object"]
    content = place.raw.read(path)
    place.raw.delete(path)
    place.take((b"{", []))
    assert preview(place.replay_config()).untried == {"not_held": 1}
    assert replay(place.replay_config()).still == {"not_held": 1, "broken_json": 1}  # the other one is tried
    place.raw.create(path, content)
    assert replay(place.replay_config()).closed == 1
    (row,) = [record for delta in account(place.raw)[1] for record in delta["runs"]]
    assert row["mention"]["labels"] == labels


def test_letters_are_chosen(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    runs = [place.facts(number, log=False) for number in range(8)]
    place.take(*(finished_event(each) for each in runs), (b"{", []), of_a_later_type(place.facts(9)))
    raw = place.raw

    def offsets(**choice: Any) -> list[int]:
        return [dead_letter.key[0].offset for dead_letter in find_open(raw, Choice(**choice))]

    assert offsets() == list(range(10))
    assert offsets(reasons=("log_*",)) == list(range(8))
    assert offsets(reasons=("broken_json", "unknown_*")) == [8, 9]
    assert offsets(runs=("",)) == [8, 9]
    assert offsets(runs=(f"*{runs[3].build_uuid}*",)) == [3]
    assert offsets(jobs=(runs[0].build_name,)) == [n for n in range(8) if runs[n].build_name == runs[0].build_name]
    assert offsets(topics=("listing:*",)) == []
    (when,) = {dead_letter.time_us for dead_letter in find_open(raw, Choice())}
    assert (offsets(since_us=when), offsets(since_us=when + 1)) == (list(range(10)), [])
    assert (offsets(until_us=when), offsets(until_us=when + 1)) == ([], list(range(10)))
    place.log_arrives(*range(8))
    assert replay(place.replay_config(limit=3, together=2)).tried == 3
    assert offsets() == list(range(3, 10))
    understood(monkeypatch)
    found = replay(place.replay_config(choice=Choice(reasons=("unknown_type",)), selection=("other-*",)))
    assert found.became == {("ignored", "job_not_selected"): 1}


def test_a_stopped_replay_ends(place: Place) -> None:
    place.take(*(finished_event(place.facts(number, log=False)) for number in range(9)))
    place.log_arrives(*range(9))
    stop = threading.Event()
    found = replay(place.replay_config(together=2), stop=stop, report=lambda each: stop.set())
    assert (found.tried, found.closed, found.complete) == (2, 2, False)
    stop = threading.Event()
    found = replay(place.replay_config(together=7), stop=stop, report=lambda each: stop.set())
    assert (found.closed, found.complete) == (7, True)  # it is stopped after all letters


def test_concurrent_replays_close_each_dead_letter_once(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    place.take(*(of_a_later_type(place.facts(n), place.facts(n + 1), event_id=f"{n}") for n in range(0, 24, 2)))
    understood(monkeypatch)
    monkeypatch.setattr("ciml.pipelines.ingest.replay.committer", Committer)  # as in processes of their own
    with ThreadPoolExecutor(3) as pool:
        results: list[Replayed] = list(pool.map(lambda _: replay(place.replay_config(together=3)), range(3)))
    assert sum(each.closed for each in results) == 12
    assert sum(each.became["run", ""] for each in results) == 24
    assert place.counts == {("run", ""): 24}


def test_a_replay_that_dies_before_any_step_closes_each_dead_letter_once(tmp_path: Path) -> None:
    order = ["create raw/RUN", "append raw: closed_letters closes runs"] * 3
    for index in each_step(len(order), few=False):
        (tmp_path / str(index)).mkdir()
        place = Place(tmp_path / str(index))
        place.take(*(finished_event(place.facts(number, log=False), event_id=f"{number}") for number in range(3)))
        place.log_arrives(*range(3))
        with Steps(place.data.url, index).recording() as steps:
            replay(place.replay_config(together=1))
        assert [step.partition("/runs/")[0].replace("raw", "raw/RUN", "/runs/" in step) for step in steps.steps] == (
            order[:index]
        )
        processor._replicas._objects.clear()  # as in another process
        assert replay(place.replay_config(together=1)).closed == 3 - index // 2
        assert place.counts == {("run", ""): 3}


def test_lines_of_a_listing_are_tried_where_their_logs_are_now(tmp_path: Path) -> None:
    made = listed(tmp_path / "logs", runs=60)
    data = DataRoot.open(tmp_path / "data")
    backfill(made.config(tmp_path / "data"), open_listing(str(made.path)))
    moved = tmp_path / "moved"
    shutil.copytree(made.folder, moved, symlinks=True)
    shutil.copy(next(moved.rglob("*.csv.gz")), moved / "none")
    shutil.copy(next(moved.rglob("*.csv.gz")), moved / "cut.gz")
    config = ReplayConfig(data.raw, fetch=FetchPolicy(file_roots=(str(moved),)), logs=str(moved))
    before = account(data.raw)[0].totals()["dead_letter"]
    found = replay(config)
    assert found.became == {("run", ""): 2}
    assert (found.tried, found.closed) == (before, 2)
    assert found.still == {"bad_field": 3, "address_not_allowed": 2, "broken_json": 2, "missing_field": 1}
    rows = raw_rows(account(data.raw)[1])
    assert {"zuul~gone~1", "zuul~cut~1"} <= rows.keys()
    (row,) = [r for d in account(data.raw)[1] for r in d["runs"] if r["mention"]["run_id"] == "zuul~gone~1"]
    assert row["mention"]["log_url"] == f"{moved.as_uri()}/none"
    assert (row["mention"]["event"], row["trust"]["rule"]) == ("listing", "listing")


def test_a_topic_publishes_open_and_closed_dead_letters(place: Place) -> None:
    secret = "http://user:s3cr3t@127.0.0.1/x?token=s3cr3t"
    place.take(
        finished_event(place.facts(0, log=False)),
        finished_event(place.facts(1).replace(log_url=secret)),
        (b'{"specversion":"1.0","id":"1","type":"x","source":"' + secret.encode() + b'"}', []),
        finished_event(place.facts(2)),
    )
    projection = Projection(committer(place.raw).log, "dead-letters", render_dead_letters, KafkaOptions("k:1"))
    with Topic().recording() as topic:
        assert projection.announce() == 1
        place.log_arrives(0)
        replay(place.replay_config())
        assert projection.announce() == 2
    for message in topic.messages:
        check_message("dead-letters", message)
    messages = [(json.loads(message.key or b""), json.loads(message.value or b"")) for message in topic.messages]
    runs = [facts.run_id for facts, _ in corpus_facts(2)]
    assert [(key, value["state"]) for key, value in messages] == [
        ([TOPIC, 0, 0, runs[0]], "open"),
        ([TOPIC, 0, 1, runs[1]], "open"),
        ([TOPIC, 0, 2, ""], "open"),
        ([TOPIC, 0, 0, runs[0]], "closed"),
    ]
    assert messages[0][1]["reason"] == "log_not_found"
    assert messages[0][1]["build_name"] == corpus_facts(1)[0][0].build_name
    assert messages[3][1] == {"state": "closed", "origin": [TOPIC, 0, 0], "run_id": runs[0], "raw_version": 2}
    everything = b"".join(message.value or b"" for message in topic.messages)
    assert b"s3cr3t" not in everything
    assert b"payload" not in everything


def test_no_dead_letter_is_no_work(place: Place) -> None:
    assert replay(place.replay_config()) == Replayed(complete=True)
    place.take(run_event(events.STARTED, place.facts(0, phase="started")))
    assert replay(place.replay_config()) == Replayed(complete=True)
    assert list(all_dead_letters(committer(place.raw).log, Choice())) == []
