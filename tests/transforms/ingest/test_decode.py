"""Decode: each (event, run) of a batch is a candidate, or settled with its reason."""

from __future__ import annotations

import json
import socket
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest

from ciml.errors import CimlError, EngineError
from ciml.events.cloudevents import QUEUED, REASONS, STARTED, decode_message, finished_event, run_event
from ciml.events.payloads import message_of
from ciml.events.records import Batch, Message, OffsetRange, Origin, Outcome, PendingRun, RunFacts
from ciml.storage import LocalStore
from ciml.transforms.fetch.policy import FetchPolicy
from ciml.transforms.ingest.decode import IGNORED, decode
from ciml.transforms.ingest.run_stages import settle
from ciml.trust import TrustPolicy

FACTS = RunFacts(
    run_id="zuul~a~1",
    build_uuid="a",
    build_name="tempest-full",
    outcome="success",
    result="SUCCESS",
    source="zuul",
    log_url="https://logs.example.org/a.gz",
    end_us=1795521600_000000,
)


def batch(*values: tuple[bytes | None, list[tuple[str, bytes]]] | bytes | None) -> Batch:
    messages = []
    for offset, item in enumerate(values, 10):
        value, headers = item if isinstance(item, tuple) else (item, [])
        messages.append(Message(offset, value, tuple(headers), None, 1795521600_000 + offset))
    return Batch(OffsetRange("ci-events", "id", 3, 10, 10 + len(messages)), messages)


def named(name: str, **changes: Any) -> RunFacts:
    return FACTS.replace(run_id=f"zuul~{name}~1", build_uuid=name, **changes)


def test_a_finished_run_is_a_candidate() -> None:
    given = batch(finished_event(FACTS, event_id="e"))
    taken = decode(given)
    assert taken == Batch(
        given.covers, [], [PendingRun(Origin("ci-events", 3, 10), "zuul e", FACTS, given.messages[0])], []
    )
    assert len(given.messages) == 1  # what was given stays as it was


@pytest.mark.parametrize(
    ("event", "reason"),
    [
        (run_event(QUEUED, FACTS.replace(phase="queued", outcome=None)), "not_finished"),
        (run_event(STARTED, FACTS.replace(phase="started", outcome=None)), "not_finished"),
        (finished_event(FACTS.replace(outcome="cancellation", result="ABORTED")), "cancelled"),
        (finished_event(FACTS.replace(outcome="cancellation", result="stale", log_url="")), "cancelled"),
        (finished_event(FACTS.replace(outcome="skip", result="SKIPPED")), "skipped"),
        (finished_event(FACTS.replace(outcome="error", result="NODE_FAILURE", log_url="")), "node_lost"),
        (finished_event(FACTS.replace(outcome="error", result="CONFIG_ERROR")), "never_started"),
        (finished_event(FACTS.replace(build_name="docs")), "job_not_selected"),
        (finished_event(FACTS.replace(build_name="Tempest-full")), "job_not_selected"),
    ],
)
def test_ignored(event: Any, reason: str) -> None:
    assert reason in IGNORED
    taken = decode(batch(event), ["tempest-*", "unit"])
    assert (taken.messages, taken.pending_runs) == ([], [])
    (outcome,) = taken.settled
    assert (outcome.kind, outcome.reason, outcome.payload) == ("ignored", reason, None)
    assert outcome.mention == decode_message(Message(0, event[0], tuple(event[1]))).run_facts[0]


@pytest.mark.parametrize("result", ["FAILURE", "TIMED_OUT", "POST_FAILURE", "DISK_FULL"])
def test_runs_that_did_not_pass_are_candidates(result: str) -> None:
    (pending,) = decode(batch(finished_event(FACTS.replace(outcome=None, result=result)))).pending_runs
    assert pending.mention.result == result


@pytest.mark.parametrize(
    ("selection", "taken"),
    [
        (["*"], ["tempest-full", "unit-1", "docs"]),
        (["all"], ["tempest-full", "unit-1", "docs"]),
        (["unit-?", "docs"], ["unit-1", "docs"]),
        (["tempest-[ef]ull"], ["tempest-full"]),
        ([], []),
    ],
)
def test_selection(selection: list[str], taken: list[str]) -> None:
    given = batch(*(finished_event(named(job, build_name=job)) for job in ("tempest-full", "unit-1", "docs")))
    out = decode(given, selection)
    assert [pending.mention.build_name for pending in out.pending_runs] == taken
    assert [outcome.reason for outcome in out.settled] == ["job_not_selected"] * (3 - len(taken))


def test_dead_letters_can_be_tried_again() -> None:
    broken = b'{"specversion": "1.0", "id": "e"'
    out = decode(batch(None, broken, (b"{}", [("ce_specversion", b"1.0")]), finished_event(FACTS.replace(log_url=""))))
    assert out.pending_runs == []
    assert [
        (dead_letter.kind, dead_letter.reason, dead_letter.detail, dead_letter.origin.offset)
        for dead_letter in out.settled
    ] == [
        ("dead_letter", "tombstone", "the message has no value", 10),
        ("dead_letter", "broken_json", "Expecting ',' delimiter at character 32", 11),
        ("dead_letter", "missing_field", "source", 12),
        ("dead_letter", "missing_field", "log_url", 13),
    ]
    assert {dead_letter.reason for dead_letter in out.settled} <= REASONS
    assert [dead_letter.mention for dead_letter in out.settled[:3]] == [None] * 3
    for dead_letter, message in zip(out.settled, batch(None, broken).messages, strict=False):
        stored = Outcome.from_json(json.loads(json.dumps(dead_letter.to_json())))
        assert stored == dead_letter
        assert message_of(stored.payload or {}, dead_letter.origin.offset) == message


def test_every_run_of_an_event_is_accounted_for_once() -> None:
    runs = [
        named("good"),
        named("late", end_us=1, start_us=None),
        named("cancelled", outcome="cancellation", result="ABORTED"),
        named("other", build_name="docs"),
        named("logless", log_url=""),
        named("also-good"),
    ]
    out = decode(batch(finished_event(*runs, event_id="many")), ["tempest-full"])
    assert [pending.mention.build_uuid for pending in out.pending_runs] == ["good", "also-good"]
    assert Counter((outcome.kind, outcome.reason, outcome.run_id) for outcome in out.settled) == Counter([
        ("dead_letter", "bad_time", "zuul~late~1"),
        ("ignored", "cancelled", "zuul~cancelled~1"),
        ("ignored", "job_not_selected", "zuul~other~1"),
        ("dead_letter", "missing_field", "zuul~logless~1"),
    ])  # fmt: skip
    assert {outcome.event_key for outcome in out.settled} == {"zuul many"}
    for dead_letter in out.settled:
        if dead_letter.payload:  # the message of each speaks of that run alone
            message = message_of(dead_letter.payload, 0)
            again = decode(Batch(OffsetRange("t", "", 0, 0, 1), [message])).settled
            assert [(item.reason, item.run_id, item.event_key) for item in again] == [
                (dead_letter.reason, dead_letter.run_id, dead_letter.event_key)
            ]


def test_a_signed_address_is_fetched_from_and_not_kept() -> None:
    url = "https://logs.example.org/a.gz?sig=s3cr3t"
    out = decode(batch(finished_event(FACTS.replace(log_url=url)), finished_event(named("b", log_url=url), named("c"))))
    assert [pending.address for pending in out.pending_runs] == [url, url, ""]
    assert {pending.mention.log_url for pending in out.pending_runs} == {
        "https://logs.example.org/a.gz?sig=REDACTED", FACTS.log_url,
    }  # fmt: skip
    (pending,) = decode(batch(finished_event(FACTS.replace(output_url=url)))).pending_runs
    assert (pending.output_address, pending.mention.output_url) == (url, f"{url[:-6]}REDACTED")


def test_what_was_settled_before_stays() -> None:
    earlier = Outcome("ignored", Origin("t", 0, 1), reason="skipped")
    given = batch(finished_event(FACTS))
    given.settled.append(earlier)
    assert decode(given, ["docs"]).settled[0] == earlier
    retries = Batch(None, [], [PendingRun(Origin("t", 0, 1), "k", FACTS)])
    assert decode(retries) == retries
    with pytest.raises(CimlError):
        decode(Batch(None, [Message(0, b"{}")]))


@pytest.fixture
def closed() -> Iterator[str]:
    """An address at which nothing listens."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


@pytest.mark.parametrize("logs", [9, 10])
@pytest.mark.parametrize("outages", [True, False])
def test_ten_logs_that_cannot_be_read_in_three_rounds_are_an_outage(
    logs: int, outages: bool, closed: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    facts = [RunFacts(f"zuul~{n}~1", str(n), "unit", source="zuul", log_url=f"{closed}/{n}") for n in range(logs)]
    batch = Batch(None, pending_runs=[PendingRun(Origin("t", 0, n), "", run) for n, run in enumerate(facts)])
    raw = LocalStore(tmp_path_factory.mktemp("raw"))
    pauses: list[float] = []

    def settled() -> list[Batch]:
        return settle([batch], TrustPolicy.load(), FetchPolicy((closed,)), raw, outages=outages, sleep=pauses.append)

    if logs == 10 and outages:
        with pytest.raises(EngineError, match="none of 10 logs can be read: log_unavailable"):
            settled()
    else:
        (found,) = settled()
        assert [(each.kind, each.reason) for each in found.settled] == [("dead_letter", "log_unavailable")] * logs
    assert pauses == [0.5, 2.0]
