"""Events: three content modes have one meaning; hostile input is rejected with a reason that names the field."""

from __future__ import annotations

import json
from typing import Any

import pytest

from ciml.errors import CimlError, IntegrityError, RejectedInput
from ciml.events.cloudevents import (
    FINISHED,
    QUEUED,
    REASONS,
    STARTED,
    DecodedRuns,
    decode_message,
    finished_event,
    run_event,
)
from ciml.events.payloads import message_of, payload_of
from ciml.events.records import Message, RunFacts
from ciml.events.run_facts import LISTING
from ciml.limits import MAX_MESSAGE_BYTES

SECRET = "s3cr3t"
UUID = "5e70d239-95b5-466e-9798-41053314c81b"
RUN: dict[str, Any] = {
    "id": UUID,
    "job": "tempest-full",
    "result": "SUCCESS",
    "pipeline": "gate",
    "project": "openstack/nova",
    "branch": "master",
    "change": 903450,
    "patchset": "3",
    "review": "approved",
    "provider": "rax",
    "region": "iad",
    "flavour": "8-vcpu",
    "log_url": "https://logs.example.org/5e/dstat.txt.gz",
    "output_url": "https://logs.example.org/5e/job-output.txt",
    "start_time": "2026-11-24T12:00:00+01:00",
    "end_time": 1795521600.25,
    "labels": {"framework": "hadoop", "rows": 43, "elapsed_s": 41.5, "voting": True, "none": None},
}
FACTS = RunFacts(
    run_id=f"zuul~{UUID}~1",
    build_uuid=UUID,
    build_name="tempest-full",
    outcome="success",
    result="SUCCESS",
    source="zuul",
    pipeline="gate",
    project="openstack/nova",
    branch="master",
    change="903450",
    patchset="3",
    review="approved",
    provider="rax",
    region="iad",
    flavour="8-vcpu",
    log_url="https://logs.example.org/5e/dstat.txt.gz",
    start_us=1795518000_000000,
    end_us=1795521600_250000,
    labels={"framework": "hadoop", "rows": "43", "elapsed_s": "41.5", "voting": "true"},
    output_url="https://logs.example.org/5e/job-output.txt",
)


def envelope(data: Any, **changes: Any) -> dict[str, Any]:
    made = {"specversion": "1.0", "id": "e1", "source": "zuul", "type": FINISHED, "data": data, **changes}
    return {name: value for name, value in made.items() if value is not ...}


def bare(run: Any, **changes: Any) -> Message:
    return Message(7, json.dumps(envelope(**{"data": run, **changes})).encode())


#: Line separator, right to left, joiner, byte order mark, private use, tag, unassigned, escape.
UNPRINTABLE = "\u2028\u202e\u200d\ufeff\ue000\U000e0041\u0378\x1b"


def rejection(message: Message) -> RejectedInput:
    with pytest.raises(RejectedInput) as caught:
        decode_message(message)
    assert caught.value.reason in REASONS
    return caught.value


def test_one_run_and_fields_that_the_format_does_not_know() -> None:
    changes = {"time": "2026-11-24T12:00:01.5Z", "traceparent": "00-1-1-00"}
    event = decode_message(bare({**RUN, "new": {"deep": [1]}, "more": [[[]], {}] * 200}, **changes))
    assert event.run_facts == (FACTS,)
    assert (event.key, event.source, event.id, event.type) == ("zuul e1", "zuul", "e1", FINISHED)
    assert event.time_us == 1795521601_500000
    assert (event.rejections, event.addresses, event.runs) == ((), {}, {})


def test_structured_binary_and_bare_mean_the_same() -> None:
    value = json.dumps(envelope(RUN)).encode()
    structured = Message(7, value, (("Content-Type", b"application/cloudevents+json; charset=UTF-8"), ("trace", None)))
    names = ("specversion", "id", "source", "type")
    headers = tuple((f"ce_{name}", str(envelope(RUN)[name]).encode()) for name in names)
    binary = Message(7, json.dumps(RUN).encode(), (*headers, ("content-type", b"application/json")))
    events = [decode_message(message) for message in (structured, binary, Message(7, value))]
    assert events[0] == events[1] == events[2]
    assert events[0].run_facts == (FACTS,)


@pytest.mark.parametrize("mode", ["structured", "binary", "bare"])
@pytest.mark.parametrize("event_type", [FINISHED, STARTED, QUEUED])
def test_written_events_are_read_back(mode: Any, event_type: str) -> None:
    phase = event_type.split(".")[3]
    first = FACTS.replace(phase=phase, outcome="success" if phase == "finished" else None)  # type: ignore[arg-type]
    second = first.replace(run_id="zuul~%2E.%2Fx~2", build_uuid="../x", labels={}, end_us=None, event="ref-updated")
    value, headers = run_event(event_type, first, mode=mode)
    event = decode_message(Message(0, value, tuple(headers)))
    assert (event.run_facts, event.time_us) == ((first,), FACTS.end_us)
    value, headers = run_event(event_type, first, second, event_id="other", mode=mode, time_us=1795521600_000000)
    event = decode_message(Message(0, value, tuple(headers)))
    assert (event.run_facts, event.key, event.time_us) == ((first, second), "zuul other", 1795521600_000000)


def test_an_event_has_one_source_and_again_the_same_id() -> None:
    keys = [decode_message(Message(0, finished_event(FACTS.replace(result=word))[0])).key for word in ("a", "a", "b")]
    assert keys[0] == keys[1] != keys[2]
    for facts in ((), (FACTS, FACTS.replace(source="github"))):
        with pytest.raises(CimlError):
            finished_event(*facts)


def test_a_message_without_a_value_is_a_tombstone_and_one_without_json_is_broken() -> None:
    for headers in ((), (("ce_id", b"1"), ("ce_specversion", b"1.0"))):
        reasons = [rejection(Message(0, value, headers)).reason for value in (None, b"", b"{")]
        assert reasons == ["tombstone", "tombstone", "broken_json"]


@pytest.mark.parametrize(
    ("message", "detail"),
    [
        (Message(0, b"[]"), "a list"),
        (Message(0, b"17"), "a whole number"),
        (Message(0, json.dumps(RUN).encode()), "specversion"),
        (bare(RUN, specversion="0.3"), "specversion"),
        (bare(RUN, specversion=1.0), "specversion"),
        (Message(0, b"[{}]", (("content-type", b"application/cloudevents-batch+json"),)), "content-type"),
        (Message(0, b"x", (("content-type", b"application/cloudevents+avro"),)), "content-type"),
        (Message(0, b"{}", (("ce_specversion", b"1.0"), ("content-type", b"text/html"))), "content-type"),
        (Message(0, b"{}", (("ce_id", b"1"),)), "ce_specversion"),
        (Message(0, b"{}", (("ce_id", b"1"), ("CE_ID", b"2"), ("ce_specversion", b"1.0"))), "appears twice"),
    ],
)
def test_not_an_event(message: Message, detail: str) -> None:
    rejected = rejection(message)
    assert rejected.reason == "not_an_event"
    assert detail in rejected.detail


@pytest.mark.parametrize(
    ("changes", "reason", "detail"),
    [
        ({"type": "dev.ciml.run.finished.v2"}, "unknown_type", "type: 'dev.ciml.run.finished.v2'"),
        ({"type": ...}, "missing_field", "type"),
        ({"type": 3.5}, "bad_field", "type: want a text, not a number"),
        ({"id": ...}, "missing_field", "id"),
        ({"id": "  "}, "missing_field", "id"),
        ({"id": "a\nb"}, "bad_field", "id: holds an unprintable character"),
        ({"id": "https://h/a?sig=REDACTED"}, "bad_field", "id: holds a user name, a password or a token"),
        ({"source": None}, "missing_field", "source"),
        ({"source": ["zuul"]}, "bad_field", "source: want a text, not a list"),
        ({"source": "a b"}, "bad_field", "source: want a URI reference"),
        ({"source": "://"}, "bad_field", "source: '://' has no configured name; add --source '://'=NAME"),
        ({"time": "yesterday"}, "bad_time", "time: 'yesterday' is not ISO 8601"),
        ({"data": ...}, "missing_field", "data"),
        ({"data": None}, "missing_field", "data"),
        ({"data": [RUN]}, "bad_field", "data: want an object, not a list"),
        ({"data": ..., "data_base64": "e30="}, "bad_field", "data_base64: want data as JSON"),
    ],
)
def test_bad_envelopes(changes: dict[str, Any], reason: str, detail: str) -> None:
    rejected = rejection(bare(RUN, **changes))
    assert (rejected.reason, rejected.detail) == (reason, detail)


@pytest.mark.parametrize(
    ("changes", "reason", "detail"),
    [
        ({"id": None}, "missing_field", "id"),
        ({"id": ""}, "missing_field", "id"),
        ({"id": {"a": 1}}, "bad_run_id", "id: want a text, not an object"),
        ({"id": True}, "bad_run_id", "id: want a text, not true or false"),
        *(({"id": text}, "bad_run_id", "id: holds an unprintable character") for text in ("a\x00b", "\ud800")),
        *(({"attempt": n}, "bad_run_id", "attempt: want a whole number from 1") for n in ("2", 0, True, 10**30)),
        *(({"job": text}, "missing_field", "job") for text in (None, " ")),
        *(({"job": f"a{text}b"}, "bad_field", "job: holds an unprintable character") for text in UNPRINTABLE),
        ({"branch": "a\u00adb" + "c" * 30}, "bad_field", "branch: holds an unprintable character"),
        ({"labels": {"a\u2066": 1}}, "bad_field", "labels: the name 'a\\u2066' is empty, too long or not clean"),
        ({"labels": {"a\n": 1}}, "bad_field", "labels: the name 'a\\n' is empty, too long or not clean"),
        ({"labels": {"a": "\u202e"}}, "bad_field", "labels.a: want a short printable text or a number, got a text"),
        ({"labels": {"a": {"b": 1}}}, "bad_field", "labels.a: want a short printable text or a number, got an object"),
        ({"labels": {"a": 10**30}}, "bad_field", "labels.a: want a short printable text or a number, got a huge "),
        ({"labels": []}, "bad_field", "labels: want an object, not a list"),
        ({"job": 10**20}, "bad_field", "job: want a text, not a huge number"),
        ({"result": None}, "missing_field", "result"),
        ({"result": "https://example.org/my own message"}, "bad_field", "result: "),
        ({"outcome": "SUCCESS"}, "bad_field", "outcome: unknown 'SUCCESS'; choose from "),
        ({"project": 1.5}, "bad_field", "project: want a text, not a number"),
        ({"review": ["approved"]}, "bad_field", "review: want a text, not a list"),
        *(({"fork": value}, "bad_field", "fork: want yes or no") for value in ("YES", "true", 0, 1, 1.0, [], {})),
        ({"start_time": "2026-11-24T12:00:00"}, "bad_time", "start_time: '2026-11-24T12:00:00' has no time zone"),
        ({"start_time": 1795518000000}, "bad_time", "start_time: 1795518000000 is not epoch seconds of 2000 to 2099"),
        ({"start_time": "0001-01-01T00:00:00+14:00"}, "bad_time", "start_time: "),
        ({"start_time": "2026-02-29T00:00:00Z"}, "bad_time", "start_time: '2026-02-29T00:00:00Z' is not ISO 8601"),
        ({"start_time": True}, "bad_time", "start_time: want ISO 8601 or epoch seconds, not true or false"),
        ({"end_time": 10**400}, "bad_time", "end_time: "),
        ({"end_time": "2026-11-24T10:59:59Z"}, "bad_time", "end_time: before start_time"),
        ({"start_time": None, "end_time": None}, "missing_field", "start_time"),
        ({"event": LISTING}, "bad_field", "event: 'listing' is reserved for listings"),
    ],
)
def test_bad_runs(changes: dict[str, Any], reason: str, detail: str) -> None:
    alone = bare({**RUN, **changes})
    several = bare({"runs": [{**RUN, "id": "first"}, {**RUN, **changes}, {**RUN, "id": "last"}]})
    if reason == "bad_run_id" or detail == "id":  # the run is unknown
        rejected = rejection(alone)
        assert rejected.reason == reason
        assert rejected.detail.startswith(detail)
        assert rejection(several).detail.startswith(f"runs[1].{detail}")
        return
    event = decode_message(alone)
    assert (event.run_facts, event.key) == ((), "zuul e1")
    ((facts, fault),) = event.rejections
    assert facts == RunFacts(FACTS.run_id, UUID, "", source="zuul")
    assert fault.reason == reason
    assert fault.detail.startswith(detail)
    assert fault.detail.isprintable()
    # The same fault in one of several runs rejects that run alone.
    event = decode_message(several)
    assert [facts.build_uuid for facts in event.run_facts] == ["first", "last"]
    ((facts, fault),) = event.rejections
    assert (facts.run_id, fault.reason) == (FACTS.run_id, reason)
    assert fault.detail.startswith(f"runs[1].{detail}")


def test_several_runs_in_one_event() -> None:
    for runs, detail in (
        ([], "runs: want a list of runs, not an empty list"),
        (RUN, "runs: want a list of runs, not an object"),
        ([RUN, 3], "runs[1]: want an object, not a whole number"),
        ([RUN, RUN], "runs[1].id: the run appears twice in the event"),
    ):
        assert rejection(bare({"runs": runs})).detail == detail
    assert decode_message(bare({"runs": [RUN]})) == decode_message(bare(RUN))._replace(runs={FACTS.run_id: RUN})
    attempts = decode_message(bare({"runs": [RUN, {**RUN, "attempt": 2}]})).run_facts
    assert [facts.run_id for facts in attempts] == [f"zuul~{UUID}~1", f"zuul~{UUID}~2"]


def test_of_several_runs_with_one_id_the_first_counts() -> None:
    runs = DecodedRuns()
    addresses = [f"https://h/{name}?sig={SECRET}" for name in ("first", "second")]
    assert {runs.add({**RUN, "log_url": address}, "zuul", "finished") for address in addresses} == {FACTS.run_id}
    assert runs.facts == {FACTS.run_id: FACTS.replace(log_url="https://h/first?sig=REDACTED")}
    assert runs.addresses == {FACTS.run_id: addresses[0]}


def test_each_run_of_an_event_has_a_message_of_its_own() -> None:
    message = bare({"runs": [RUN, {**RUN, "id": "b"}]}, time="2026-11-24T12:00:00Z")
    event = decode_message(message)
    own = event.message_for("zuul~b~1", message)
    assert len(own.value or b"") < len(message.value or b"")
    alone = decode_message(own)
    assert (alone.key, alone.time_us, alone.run_facts) == (event.key, event.time_us, (event.run_facts[1],))
    single = bare(RUN)
    assert decode_message(single).message_for(FACTS.run_id, single) is single


@pytest.mark.parametrize(("event_type", "phase"), [(STARTED, "started"), (QUEUED, "queued")])
def test_started_and_queued_runs_need_neither_outcome_nor_time(event_type: str, phase: Any) -> None:
    (facts,) = decode_message(bare({"id": UUID, "job": "j"}, type=event_type)).run_facts
    assert facts == RunFacts(f"zuul~{UUID}~1", UUID, "j", phase=phase, source="zuul")


#: Words of Zuul, GitHub, GitLab, Jenkins and Tekton.
WORDS = {
    "success": "SUCCESS success passed successful",
    "failure": "FAILURE failure failed",
    "timeout": "TIMED_OUT timed_out",
    "error": "POST_FAILURE RETRY RETRY_LIMIT NODE_FAILURE DISK_FULL MERGE_CONFLICT MERGER_FAILURE CONFIG_ERROR ERROR",
    "cancellation": "ABORTED CANCELED DEQUEUED cancelled stale canceled cancel",
    "skip": "SKIPPED skipped neutral action_required",
}


@pytest.mark.parametrize(
    ("word", "outcome"),
    [*((word, outcome) for outcome, words in WORDS.items() for word in words.split()), ("Timed out", "timeout")],
)
def test_outcome_words(word: str, outcome: str) -> None:
    (facts,) = decode_message(bare({**RUN, "result": word})).run_facts
    assert (facts.outcome, facts.result) == (outcome, word)


@pytest.mark.parametrize(
    ("field", "value", "stored"),
    [
        *(
            ("fork", value, word)
            for value, word in ((None, ""), ("", ""), ("yes", "yes"), (True, "yes"), (False, "no"))
        ),
        ("outcome", "failure", "failure"),
        ("output_url", "https://logs.example.org/5e/job-output.txt", "https://logs.example.org/5e/job-output.txt"),
        *(("output_url", malformed, "") for malformed in (None, 1.5, ["x"], "a\u202eb", "x" * 4097)),
        ("labels", {"password": SECRET, "pin_token": 1234}, {"password": "REDACTED", "pin_token": "REDACTED"}),
        ("labels", {"otp": 0.1234, "token": ""}, {"otp": "REDACTED", "token": ""}),
        ("labels", {"access_key": True, "max_tokens": 4096}, {"access_key": "true", "max_tokens": "4096"}),
        ("labels", {"web": f"x --password {SECRET}"}, {"web": "x --password REDACTED"}),
    ],
)
def test_a_value_of_a_run_as_it_is_stored(field: str, value: Any, stored: Any) -> None:
    (facts,) = decode_message(bare({**RUN, "result": "see the wiki", "outcome": "skip", field: value})).run_facts
    assert (getattr(facts, field), facts.result) == (stored, "see the wiki")


def test_the_address_with_its_secrets_is_kept_for_the_fetch_alone() -> None:
    url = f"https://me:{SECRET}@h.example/a?sv=1&%73ig={SECRET}#access_token={SECRET}"
    message = bare(
        {**RUN, "log_url": url, "output_url": url, "labels": {"web": url}}, source=f"https://ci:{SECRET}@zuul.example"
    )
    event = decode_message(message, {"*": "ci"})
    (facts,) = event.run_facts
    assert facts.log_url == facts.output_url == facts.labels["web"] == "https://h.example/a?sv=1&%73ig=REDACTED"
    assert event.addresses == event.outputs == {facts.run_id: url}
    assert (event.source, facts.source) == ("https://zuul.example", "ci")
    assert SECRET not in repr(event._replace(addresses={}, outputs={}))


def test_payloads_hold_what_is_needed_to_try_again() -> None:
    message = Message(5, b"\xff{broken", (("ce_a", None), ("listing-b", b"\x00")), b"key", 1795521600123)
    payload = json.loads(json.dumps(payload_of(message)))
    assert message_of(payload, 5) == message
    assert message_of(payload_of(Message(5, None)), 5) == Message(5, None)
    large = payload_of(Message(5, b"x" * (MAX_MESSAGE_BYTES + 1)))
    assert sorted(large) == ["sha256", "size", "timestamp_ms"]
    with pytest.raises(IntegrityError, match="topic and offset"):
        message_of(large, 5)
