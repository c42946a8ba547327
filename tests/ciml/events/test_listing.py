"""Listings: any file is read line by line, and each line is decoded or rejected with a reason."""

from __future__ import annotations

import gzip
import hashlib
import json
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from ciml.errors import CimlError, RejectedInput
from ciml.events import listing as listing_files
from ciml.events.listing import (
    Line,
    Listing,
    Reading,
    dead_letter_of,
    decode_line,
    is_listing,
    open_listing,
    shared_listing,
)
from ciml.events.payloads import message_bytes, message_of, payload_of
from ciml.events.records import Origin, RunFacts
from ciml.events.run_facts import facts_from_listing
from ciml.limits import MAX_LISTING_LINE_BYTES, MAX_MESSAGE_BYTES
from tests.corpus import CORPUS
from tests.tier import tries

LINE: dict[str, Any] = {
    "build_uuid": "a1", "build_name": "unit", "result": "SUCCESS", "end_time": "2026-01-01T00:00:00Z",
    "log_path": "logs/unit/a1/dstat.gz", "size": "small",
}  # fmt: skip
READING = Reading("old", "zuul", "/srv/logs")


def encoded(**changes: Any) -> bytes:
    return json.dumps({name: value for name, value in {**LINE, **changes}.items() if value is not ...}).encode()


def all_lines(listing: Listing) -> list[Line]:
    return [line for block in listing.blocks for line in listing.read(block)]


def test_a_line_says_what_an_event_says_under_the_id_of_its_ci_system() -> None:
    line = encoded(
        node_provider="alibaba", node_flavor="c6", result="TIMED_OUT", start_time="2025-12-31T23:59:00Z", rows=43,
        elapsed_s=41.59, none=None, artifacts=["a"], pipeline="check", attempt=3, log_path="logs/a b.gz",
    )  # fmt: skip
    facts, address, fault, _ = decode_line(line, READING)
    assert facts == RunFacts(
        run_id="zuul~a1~3", build_uuid="a1", build_name="unit", outcome="timeout", result="TIMED_OUT", source="old",
        event="listing", pipeline="check", provider="alibaba", flavour="c6", log_url="file:///srv/logs/logs/a%20b.gz",
        start_us=1767225540_000000, end_us=1767225600_000000,
        labels={"size": "small", "elapsed_s": "41.59", "rows": "43"},
    )  # fmt: skip
    assert (address, fault) == (facts.log_url, None)
    assert facts_from_listing(LINE).log_url == LINE["log_path"]
    assert facts_from_listing(LINE, logs="s3://logs/x/").log_url == "s3://logs/x/logs/unit/a1/dstat.gz"
    assert facts_from_listing(LINE, logs="https://h/x").log_url == "https://h/x/logs/unit/a1/dstat.gz"


@pytest.mark.parametrize(
    ("line", "reason", "detail"),
    [
        (b"", "broken_json", ""),
        (b"{", "broken_json", ""),
        (b"[1]", "bad_field", "line: want an object, not a list"),
        (encoded(build_uuid=...), "missing_field", "build_uuid"),
        (encoded(build_uuid="x" * 600), "bad_run_id", "build_uuid"),
        (encoded(attempt=0), "bad_run_id", "attempt"),
    ],
)  # fmt: skip
def test_a_line_that_names_no_run_is_rejected(line: bytes, reason: str, detail: str) -> None:
    with pytest.raises(RejectedInput, match=f"^{reason}: {detail}"):
        decode_line(line, READING)


@pytest.mark.parametrize(
    ("changes", "reason", "detail"),
    [
        ({"build_name": ...}, "missing_field", "build_name"),
        ({"result": ...}, "missing_field", "result"),
        ({"result": "perhaps"}, "bad_field", "result"),
        ({"end_time": ...}, "missing_field", "start_time"),
        ({"start_time": "2026-01-02T00:00:00Z"}, "bad_time", "end_time: before start_time"),
        ({"log_path": ...}, "missing_field", "log_path"),
        ({"log_path": ["a"]}, "bad_field", "log_path"),
        ({"log_path": "a/../../x"}, "bad_field", "log_path"),
        ({"log_path": "/etc/passwd"}, "bad_field", "log_path"),
        ({"size": "x" * 2000}, "bad_field", "'size'"),
        ({f"f{number}": number for number in range(70)}, "bad_field", "71 further fields"),
    ],
)
def test_a_fault_of_a_known_run_is_reported_with_its_id(changes: dict[str, Any], reason: str, detail: str) -> None:
    run = decode_line(encoded(**changes), READING)
    assert run.facts == RunFacts("zuul~a1~1", "a1", source="old")
    assert run.fault is not None
    assert run.fault.reason == reason
    assert run.fault.detail.startswith(detail)


def test_a_line_is_kept_with_all_that_is_needed_to_try_again() -> None:
    message = Line(7, encoded()).message(READING)
    payload = json.loads(json.dumps(payload_of(message)))
    assert Reading.of(message_of(payload, 0).headers) == READING
    longest = Line(0, b"x" * MAX_LISTING_LINE_BYTES).message(Reading(logs="/" + "y" * 4000))
    assert message_bytes(longest) < MAX_MESSAGE_BYTES
    dead_letter = dead_letter_of(Origin("listing:x", 0, 3), Line(3, b"", 99, "ab"))
    assert (dead_letter.kind, dead_letter.reason, dead_letter.payload) == (
        "dead_letter", "too_large", {"size": 99, "sha256": "ab", "timestamp_ms": 0},
    )  # fmt: skip


@pytest.mark.parametrize("name", ["", "Zuul", "a b", "a/b", "-", "x" * 80])
def test_names_of_sources(name: str) -> None:
    for field in ("source", "runs_of"):
        with pytest.raises(CimlError, match="is not a source name"):
            Reading(**{field: name})


#: Limits that a few bytes reach.
SMALL = {"BLOCK_LINES": 3, "_BLOCK_BYTES": 20, "_PIECE": 7, "MAX_LISTING_LINE_BYTES": 12}
line_bytes = (
    st.binary(max_size=30).map(lambda data: data.replace(b"\n", b"")).filter(lambda data: data[:2] != b"\x1f\x8b")
)


@settings(max_examples=tries(300))
@given(lines=st.lists(line_bytes, max_size=20), ended=st.booleans())
@example(lines=[b"x" * 12], ended=False)
@example(lines=[b"x" * 13, b"y" * 12], ended=True)
def test_any_file_is_read_line_by_line(tmp_path_factory: Any, lines: list[bytes], ended: bool) -> None:
    with pytest.MonkeyPatch.context() as patch:
        for name, value in SMALL.items():
            patch.setattr(listing_files, name, value)
        text = b"\n".join(lines) + (b"\n" if ended and lines else b"")
        folder = tmp_path_factory.mktemp("listing")
        (folder / "plain").write_bytes(text)
        (folder / "packed").write_bytes(gzip.compress(text[:5]) + gzip.compress(text[5:]))
        expected = []
        for number, line in enumerate(text.removesuffix(b"\n").split(b"\n") if text else []):
            if len(line) > 12:
                expected.append((number, b"", hashlib.sha256(line).hexdigest()))
            elif (line := line if number else line.removeprefix(b"\xef\xbb\xbf")).strip():
                expected.append((number, line, ""))
        for name in ("plain", "packed"):
            if not text:
                with pytest.raises(CimlError, match=f"{name} is empty; give a file of JSON lines"):
                    open_listing(str(folder / name))
                continue
            listing = open_listing(str(folder / name))
            found = all_lines(listing)
            assert [(line.number, line.data, line.sha256) for line in found] == expected
            assert listing.digest == hashlib.sha256(text).hexdigest()
            assert listing.lines == text.count(b"\n") + (not text.endswith(b"\n") and bool(text))
            assert [block.start for block in listing.blocks[1:]] == [block.end for block in listing.blocks[:-1]]
            assert all(block.end - block.start <= 3 for block in listing.blocks)
            listing.close()


def test_a_topic_follows_from_what_a_listing_holds(tmp_path: Path) -> None:
    text = (CORPUS / "builds.jsonl").read_bytes()
    files = {"plain": text, "a.gz": gzip.compress(text), "b": gzip.compress(text, 1), "longer": text + b"\n"}
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)  # gzip is detected by its first bytes, not its name
    *topics, other = [open_listing(str(tmp_path / name)).topic for name in files]
    assert set(topics) == {f"listing:{hashlib.sha256(text).hexdigest()[:32]}"} != {other}
    assert all(map(is_listing, topics))


def test_a_line_without_end_is_passed_through_and_not_held(tmp_path: Path) -> None:
    path = tmp_path / "long.gz"
    with gzip.open(path, "wb", compresslevel=1) as out:
        out.write(encoded() + b"\n")
        for _ in range(64):
            out.write(bytes(1 << 20))
        out.write(b"\n" + encoded(build_uuid="b2") + b"\n")
    tracemalloc.start()
    listing = open_listing(str(path))
    first, long, last = all_lines(listing)
    assert tracemalloc.get_traced_memory()[1] < 16 << 20
    tracemalloc.stop()
    assert [first.number, long.number, last.number] == [0, 1, 2]
    assert (long.size, long.sha256) == ((64 << 20) + 1, hashlib.sha256(bytes(64 << 20)).hexdigest())
    assert (last.data, listing.lines) == (encoded(build_uuid="b2"), 3)


def test_a_listing_that_is_changed_meanwhile_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "builds.jsonl"
    path.write_bytes(encoded() + b"\n")
    listing = open_listing(str(path))
    assert shared_listing(str(path), listing.digest) is shared_listing(str(path), listing.digest)
    path.write_bytes(encoded(size="large") + b"\n")
    for read in (lambda: all_lines(listing), lambda: shared_listing(str(path), "0" * 64)):
        with pytest.raises(CimlError, match="changed while it was read"):
            read()


def test_an_invalid_listing_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "cut.gz").write_bytes(gzip.compress(bytes(100_000))[:-9])
    (tmp_path / "bad.gz").write_bytes(b"\x1f\x8b" + bytes(30))
    (tmp_path / "empty").write_bytes(b"")
    for name, message in {
        "none": "no such listing",
        "": "not a regular file|not a file",
        ".": "not a regular file|not a file",
        "cut.gz": "broken gzip",
        "bad.gz": "broken gzip",
        "empty": "empty is empty; give a file of JSON lines",
    }.items():
        with pytest.raises(CimlError, match=message):
            open_listing(f"{tmp_path}/{name}")
    with pytest.raises(CimlError, match="not a store; give a local path"):
        open_listing("ftp://host/builds.jsonl")
    monkeypatch.setattr(listing_files, "MAX_LISTING_BYTES", 50_000)
    (tmp_path / "bomb.gz").write_bytes(gzip.compress(bytes(100_000)))
    with pytest.raises(CimlError, match="split it"):
        open_listing(f"{tmp_path}/bomb.gz")


@pytest.mark.parametrize(
    ("path", "address"),
    [
        ("logs/a b/job-output.txt.gz", "file:///srv/logs/logs/a%20b/job-output.txt.gz"),
        ("https://h/output", "https://h/output"),
        ("../output", "../output"),
        (None, ""),
    ],
)
def test_a_line_may_name_an_output(path: str | None, address: str) -> None:
    """A path that leads elsewhere is no fault of the run: the fetch policy rejects the output alone."""
    run = decode_line(encoded(output_path=path), READING)
    assert (run.output, run.fault) == (address, None)
    assert "output_path" not in run.facts.labels
