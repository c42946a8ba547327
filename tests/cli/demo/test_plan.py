"""The plan of the demo: what is sent, and what the producer expects of it."""

from __future__ import annotations

import gzip
import io
import tarfile
from collections import Counter
from itertools import groupby
from pathlib import Path

import pytest

from ciml.cli.demo.corpus import SOURCE, change_of, corpus_folder, read_corpus, unpack_logs
from ciml.cli.demo.plan import SPOIL_EVERY, WAVES, LogRoot, Plan, cut_gzip, cut_text, make_plan, other_log
from ciml.errors import CimlError
from ciml.events.cloudevents import decode_message
from ciml.events.records import Batch, Message, OffsetRange
from ciml.transforms.ingest.decode import decode
from ciml.trust import TrustPolicy, evaluate_batch
from tests.corpus import CORPUS, builds

URL = "http://127.0.0.1:8000"


@pytest.fixture(scope="module")
def plan() -> Plan:
    return make_plan(read_corpus(CORPUS), URL)


def test_every_run_of_the_corpus_is_in_the_plan_once_and_one_in_sixteen_is_spoilt(plan: Plan) -> None:
    named = Counter(e.run_id for m in plan.messages for e in m.expected if e.kind == "run")
    lost = [m for m in plan.messages for e in m.expected if e.kind == "dead_letter"]
    assert set(named.values()) == {1}
    assert len(named) + len(lost) == len(plan.samples) == len(builds())
    assert make_plan(read_corpus(CORPUS), URL).messages == plan.messages
    tricks = Counter(m.trick for m in plan.messages if m.trick)
    twice = {
        "same event twice", "same run by another event", "same run, another log", "corrected outcome", "cancelled run",
    }  # fmt: skip
    spoilt = sum(count // (2 if trick in twice else 1) for trick, count in tricks.items())
    assert len(tricks) == 18
    assert spoilt - tricks["untrusted pipeline"] == len(range(7, len(plan.samples), SPOIL_EVERY))


def test_waves_are_a_half_and_two_quarters(plan: Plan) -> None:
    runs = [sum(e.kind == "run" for m in wave for e in m.expected) for wave in plan.waves()]
    assert [count / sum(runs) for count in runs] == pytest.approx(WAVES, abs=0.03)
    small = make_plan(read_corpus(CORPUS, 60), URL)
    assert [len(wave) > 10 for wave in small.waves()] == [True, True, True]
    assert all(sample.facts.source == SOURCE for sample in small.samples)


def test_all_modes_and_events_with_several_runs_of_one_change_are_there(plan: Plan) -> None:
    change = {sample.facts.run_id: sample.facts.change for sample in plan.samples}
    content = {dict(m.headers).get("content-type", b"") for m in plan.messages if m.value}
    assert content == {b"application/cloudevents+json", b"application/json", b""}
    changes = [{change[e.run_id] for e in m.expected} for m in plan.messages if len(m.expected) > 1]
    assert len(changes) >= 10
    assert all(len(found) == 1 and "" not in found for found in changes)


def test_the_last_word_on_a_run_is_the_recorded_outcome(plan: Plan) -> None:
    said: dict[str, str] = {}
    for message in plan.messages:
        if message.trick not in ("broken JSON", "no event at all", "tombstone"):
            decoded = decode_message(Message(0, message.value, message.headers))
            said |= {run.run_id: run.outcome for run in decoded.run_facts if run.outcome}
    recorded = {sample.facts.run_id: sample.facts.outcome for sample in plan.samples}
    assert {run_id: outcome for run_id, outcome in said.items() if run_id in recorded} == {
        run_id: outcome for run_id, outcome in recorded.items() if run_id in said
    }
    assert {"success", "failure", "timeout"} == set(recorded.values())


def test_runs_of_a_change_come_together(plan: Plan) -> None:
    changes = [change_of(sample.facts) for sample in plan.samples]
    assert len(list(groupby(changes))) == len(set(changes)) < len(changes)
    for _, some in groupby(plan.samples, lambda sample: change_of(sample.facts)):
        ends = [sample.facts.end_us or 0 for sample in some]
        assert ends == sorted(ends)


def test_decode_and_trust_agree_with_the_plan(plan: Plan) -> None:
    messages = [Message(o, m.value, m.headers, m.key) for o, m in enumerate(plan.messages)]
    batch = decode(Batch(OffsetRange("ci-events", "", 0, 0, len(messages)), messages))
    batch = evaluate_batch(batch, TrustPolicy.load())
    by_offset = {o: {e.run_id: e for e in m.expected} for o, m in enumerate(plan.messages)}
    for outcome in batch.settled:
        expected = by_offset[outcome.origin.offset].pop(outcome.run_id)
        assert (outcome.kind, outcome.reason, outcome.event_key) == (expected.kind, expected.reason, expected.event_key)
    for pending in batch.pending_runs:
        expected = by_offset[pending.origin.offset].pop(pending.mention.run_id)
        assert expected.kind in ("run", "repeat", "correction", "dead_letter")
        assert pending.event_key == expected.event_key
        if expected.kind == "run":
            assert pending.trust is not None
            assert pending.trust.trusted == expected.trusted
    assert not any(by_offset.values())


def test_messages_of_one_run_share_a_key(plan: Plan) -> None:
    keys = {(expected.run_id, m.key) for m in plan.messages for expected in m.expected if expected.run_id}
    assert len(keys) == len({run_id for run_id, _ in keys})


def test_changed_logs_are_what_they_say() -> None:
    log = gzip.compress(b'"time","usr"\n1,2.00\n2,3.00\n3,4.00000000000\n', mtime=0)
    assert gzip.decompress(other_log(log)) == b'"time","usr"\n1,2.00\n2,3.00\n'
    assert cut_text(log) == b'"time","usr"\n1,2.00\n2,3.00\n3,4.0000000'
    with pytest.raises(EOFError):
        gzip.decompress(cut_gzip(log))


def test_the_log_root_holds_what_the_plan_says(plan: Plan, tmp_path: Path) -> None:
    root = LogRoot(tmp_path / "logs", CORPUS)
    root.make(plan)
    for path in plan.logs:
        assert (root.folder / path).is_file() == (path not in plan.late)
    for path in plan.late:
        root.release(plan, path)
        assert (root.folder / path).read_bytes() == (root.corpus / plan.logs[path][0].log_path).read_bytes()
    assert not (root.folder / "missing").exists()


def test_a_run_with_an_output_is_served_in_a_folder(plan: Plan, tmp_path: Path) -> None:
    """Its event names the folder. A run whose event names another address, such as that of a late log, has none."""
    outputs = {sample.facts.run_id for sample in plan.samples if sample.output_path}
    expected = {e.run_id: e for m in plan.messages for e in m.expected if e.kind == "run"}
    assert {run_id for run_id, e in expected.items() if e.output} <= outputs
    without = {e.trick for run_id, e in expected.items() if run_id in outputs and not e.output}
    assert without == {"log appears later", "log cut short (text)"}
    root = LogRoot(tmp_path / "logs", CORPUS)
    root.make(plan)
    assert len(plan.outputs) >= len([e for e in expected.values() if e.output]) > 250
    path, sample = next(iter(plan.outputs.items()))
    folder = f"{URL}/{path.rpartition('/')[0]}/"
    assert root.read(path) == gzip.decompress((CORPUS / sample.output_path).read_bytes())
    assert root.read_text(folder, URL).encode() == gzip.decompress((CORPUS / sample.log_path).read_bytes())


def packed(folder: Path, *members: tarfile.TarInfo) -> Path:
    folder.mkdir()
    with tarfile.open(folder / "logs.tar", "w") as tar:
        for member in members:
            tar.addfile(member, io.BytesIO(bytes(member.size)))
    return folder


def test_an_archive_writes_nothing_beside_its_folder(tmp_path: Path) -> None:
    good, outside, link = (tarfile.TarInfo(name) for name in ("logs/j/a.gz", "../outside", "logs/link"))
    good.size, link.type, link.linkname = 3, tarfile.SYMTYPE, "/etc/passwd"
    assert unpack_logs(packed(tmp_path / "good", good), tmp_path / "to") == tmp_path / "to"
    assert (tmp_path / "to/logs/j/a.gz").read_bytes() == bytes(3)
    for name, member in {"up": outside, "link": link}.items():
        with pytest.raises(CimlError, match=r"logs\.tar: "):
            unpack_logs(packed(tmp_path / name, member), tmp_path / "to")
    assert not (tmp_path / "outside").exists()
    (tmp_path / "cut").mkdir()
    (tmp_path / "cut" / "logs.tar").write_bytes((tmp_path / "good" / "logs.tar").read_bytes()[:520])
    with pytest.raises(CimlError, match=r"logs\.tar: "):
        unpack_logs(tmp_path / "cut", tmp_path / "to")


def test_a_folder_without_listing_or_logs_is_named(tmp_path: Path) -> None:
    with pytest.raises(CimlError, match=r"no builds\.jsonl in"):
        corpus_folder(str(tmp_path))
    with pytest.raises(CimlError, match=r"neither logs\.tar nor logs in"):
        unpack_logs(tmp_path, tmp_path / "to")
    (tmp_path / "logs").mkdir()
    assert unpack_logs(tmp_path, tmp_path / "to") == tmp_path


@pytest.mark.parametrize("line", ["{", "[]", '{"build_uuid": "a"}', '{"log_path": "l", "rows": 1, "build_uuid": "a"}'])
def test_a_line_that_is_no_run_is_named(tmp_path: Path, line: str) -> None:
    (tmp_path / "builds.jsonl").write_text(line + "\n")
    with pytest.raises(CimlError, match=r"builds\.jsonl line 1: "):
        read_corpus(tmp_path)
