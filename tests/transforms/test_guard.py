"""The guard: which exceptions are an input's, what its dead letter says, and that the rest of a batch goes on."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import BrokenExecutor, CancelledError

import grpc
import pytest
from botocore.exceptions import ClientError, EndpointConnectionError
from confluent_kafka import KafkaException

from ciml.errors import CimlError, EngineError, IntegrityError, RejectedInput
from ciml.events import payloads
from ciml.events.records import Batch, Message, OffsetRange, Origin, Outcome, PendingRun, RunFacts
from ciml.transforms import guard
from ciml.transforms.guard import INTERNAL, attempt, bisect, guarded_messages, guarded_runs


def _raise(error: BaseException) -> None:
    raise error


@pytest.mark.parametrize(
    "error",
    [
        ValueError("x"), KeyError("x"), MemoryError(), RecursionError("deep"), SystemError("x"), OverflowError("x"),
        AssertionError(), UnicodeDecodeError("utf-8", b"\xff", 0, 1, "x"), StopIteration(), Exception("x"),
    ],
    ids=lambda error: type(error).__name__,
)  # fmt: skip
def test_what_an_input_can_cause_refuses_it(error: Exception) -> None:
    rejected = attempt("parse", _raise, error)
    assert isinstance(rejected, RejectedInput)
    assert rejected.reason == "internal_error"
    assert rejected.detail.startswith(f"parse: {type(error).__name__}")
    assert rejected.detail.endswith("test_guard.py:26 _raise]".replace("26", str(_raise.__code__.co_firstlineno + 1)))


@pytest.mark.parametrize(
    "error",
    [
        KeyboardInterrupt(), SystemExit(3), GeneratorExit(), CimlError("x"), EngineError("x"), IntegrityError("x"),
        OSError(28, "no space"), TimeoutError(), ConnectionResetError(), ImportError("x"), BrokenExecutor(),
        CancelledError(), KafkaException("x"), grpc.RpcError("x"), ClientError({}, "PutObject"),
        EndpointConnectionError(endpoint_url="x"),
    ],
    ids=lambda error: type(error).__name__,
)  # fmt: skip
def test_what_no_input_can_cause_passes_through(error: BaseException) -> None:
    with pytest.raises(type(error)) as caught:
        attempt("parse", _raise, error)
    assert caught.value is error
    with pytest.raises(type(error)):
        list(bisect("parse", [1, 2], lambda some: _raise(error)))


def test_a_library_that_is_not_loaded_is_not_loaded_by_a_guard() -> None:
    code = (
        "import sys; from ciml.transforms.guard import attempt; r = attempt('x', int, 'y'); "
        "print(r.reason, 'confluent_kafka' in sys.modules, 'botocore' in sys.modules, 'apache_beam' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["internal_error", "False", "False", "False"]


def test_a_refused_input_keeps_its_own_reason() -> None:
    rejected = RejectedInput("no_time", "none of 3 rows")
    assert attempt("parse", _raise, rejected) is rejected


class _Unprintable(Exception):
    def __str__(self) -> str:
        raise ValueError("no text")


def test_the_detail_is_one_printable_line_without_secrets_and_bounded() -> None:
    def deep(left: int) -> None:
        if left:
            wide(left - 1)
        raise ValueError(f"https://user:pw@example.org/?token=abcdefgh a\nb\x1b[31m\u202e\ud800 {'x' * 1_000_000}")

    def wide(left: int) -> None:
        deep(left)

    rejected = attempt("parse", deep, 300)
    assert isinstance(rejected, RejectedInput)
    said, _, frames = rejected.detail.rpartition(" [")
    assert rejected.detail.isprintable()
    assert "pw" not in said
    assert "abcdefgh" not in said
    assert "example.org" in said
    assert len(said) <= 300 + len("parse: ValueError: ")
    assert len(frames.encode()) <= 1 << 10
    assert frames.endswith(f" > transforms/test_guard.py:{deep.__code__.co_firstlineno + 3} deep]")
    assert frames.count("deep") > 5

    rejected = attempt("parse", _raise, _Unprintable())
    assert isinstance(rejected, RejectedInput)
    assert rejected.detail.startswith("parse: _Unprintable [")


def test_a_message_is_redacted_before_it_is_cut() -> None:
    error = ValueError("x" * 290 + "ghp_" + "a1" * 18)  # a part of a token is not recognised as one
    rejected = attempt("parse", _raise, error)
    assert isinstance(rejected, RejectedInput)
    assert "ghp_" not in rejected.detail
    assert "x" * 290 in rejected.detail


def test_a_recursion_is_named_once() -> None:
    def again() -> None:
        again()

    rejected = attempt("parse", again)
    assert isinstance(rejected, RejectedInput)
    assert rejected.detail.count(" again") == 1
    assert "RecursionError" in rejected.detail


@pytest.mark.parametrize("poisoned", [(), (0,), (6,), (2, 3), (0, 3, 6), tuple(range(7))])
def test_a_batch_is_halved_until_each_poisoned_input_is_alone(poisoned: Sequence[int]) -> None:
    calls: list[Sequence[int]] = []

    def work(items: Sequence[int]) -> list[int]:
        calls.append(items)
        if bad := set(items) & set(poisoned):
            raise ValueError(f"{bad}")
        return [item * 10 for item in items]

    found = list(bisect("double", list(range(7)), work))
    assert [item for items, _ in found for item in items] == list(range(7))
    assert {items[0] for items, made in found if isinstance(made, RejectedInput)} == set(poisoned)
    assert all(len(items) == 1 for items, made in found if isinstance(made, RejectedInput))
    assert [item for _, made in found if not isinstance(made, RejectedInput) for item in made] == [
        item * 10 for item in range(7) if item not in poisoned
    ]
    assert calls[0] == list(range(7))  # the fast path is one call
    if not poisoned:
        assert len(calls) == 1
    assert len(calls) <= 1 + 2 * 3 * max(len(poisoned), 0)


def test_an_exception_that_does_not_recur_excludes_no_input() -> None:
    failures = iter([MemoryError(), None, None])

    def work(items: Sequence[int]) -> int:
        if error := next(failures):
            raise error
        return sum(items)

    assert [made for _, made in bisect("add", [1, 2, 3], work)] == [1, 5]


def test_work_that_fails_without_inputs_is_an_error() -> None:
    with pytest.raises(ValueError, match="none"):
        list(bisect("add", [], lambda some: _raise(ValueError("none"))))


COVERS = OffsetRange("t", "id", 3, 10, 20)


def _pending_runs(count: int) -> list[PendingRun]:
    return [
        PendingRun(Origin("t", 3, 10 + n), f"e{n}", RunFacts(f"zuul~{n}~1", f"{n}"), Message(10 + n, f"v{n}".encode()),
                  attempts=2, first_seen_us=5, log=f"log {n}".encode())
        for n in range(count)
    ]  # fmt: skip


def _swallow(poison: str) -> Callable[[Batch], Batch]:
    """A stage that eats the logs of its candidates before it fails for one, refuses one, and stores the others."""

    def stage(batch: Batch) -> Batch:
        settled = list(batch.settled)
        for each in batch.pending_runs:
            data, each.log = each.log, None
            assert data is not None, "the log was eaten by an earlier try"
            if each.mention.build_uuid == poison:
                raise IndexError(poison)
            reason = data.decode() if each.mention.build_uuid == "1" else ""
            settled.append(
                Outcome("dead_letter" if reason else "run", each.origin, mention=each.mention, detail=reason)
            )
        return Batch(batch.covers, batch.messages, [], settled)

    return stage


def test_a_stage_that_changes_candidates_in_place_can_be_run_again() -> None:
    before = Outcome("ignored", Origin("t", 3, 19), reason="cancelled")
    clean = guarded_runs("eat", _swallow("none"), Batch(COVERS, [], _pending_runs(6), [before]))
    batch = guarded_runs("eat", _swallow("4"), Batch(COVERS, [], _pending_runs(6), [before]))
    assert batch.covers == COVERS
    assert batch.pending_runs == []
    assert [each.origin.offset for each in batch.settled] == [19, 10, 11, 12, 13, 14, 15]
    assert batch.settled[:5] + batch.settled[6:] == clean.settled[:5] + clean.settled[6:]
    dead_letter = batch.settled[5]
    assert (dead_letter.kind, dead_letter.reason) == ("dead_letter", "internal_error")
    assert dead_letter.detail.startswith("eat: IndexError: 4 [")
    assert (dead_letter.event_key, dead_letter.run_id, dead_letter.attempts, dead_letter.first_seen_us) == (
        "e4",
        "zuul~4~1",
        2,
        5,
    )
    assert dead_letter.payload is not None
    assert dead_letter.payload["value"] == "djQ="


def test_a_settled_outcome_that_a_stage_fails_for_is_a_dead_letter() -> None:
    outcomes = [Outcome("ignored", Origin("t", 3, n), f"e{n}", RunFacts(f"zuul~{n}~1", "n")) for n in (10, 11)]

    def stage(batch: Batch) -> Batch:
        for each in batch.settled:
            if each.origin.offset == 11:
                raise IndexError("eleven")
        return batch

    batch = guarded_runs("trust", stage, Batch(COVERS, [], _pending_runs(1), outcomes))
    assert [each.kind for each in batch.settled] == ["ignored", "dead_letter"]
    assert (batch.settled[1].run_id, batch.settled[1].reason) == ("zuul~11~1", INTERNAL)
    assert len(batch.pending_runs) == 1


def test_a_message_that_cannot_be_decoded_for_an_unexpected_reason_costs_itself() -> None:
    def stage(batch: Batch) -> Batch:
        if any(message.value == b"v2" for message in batch.messages):
            raise KeyError("v2")
        done = [Outcome("ignored", Origin("t", 3, each.offset)) for each in batch.messages]
        return Batch(batch.covers, [], list(batch.pending_runs), [*batch.settled, *done])

    batch = guarded_messages(
        "decode", stage, Batch(COVERS, [Message(10 + n, f"v{n}".encode(), (("content-type", b"x"),)) for n in range(4)])
    )
    assert [(each.kind, each.origin.offset) for each in batch.settled] == [
        ("ignored", 10), ("ignored", 11), ("dead_letter", 12), ("ignored", 13),
    ]  # fmt: skip
    assert (batch.covers, batch.messages) == (COVERS, [])
    assert batch.settled[2].payload == {"value": "djI=", "headers": [["content-type", "eA=="]], "timestamp_ms": 0}


def test_a_payload_that_cannot_be_made_is_size_and_digest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(payloads, "payload_of", lambda message: _raise(ValueError("payload")))
    assert guard._payload_of(Message(1, b"abc", timestamp_ms=7)) == {
        "size": 3, "sha256": hashlib.sha256(b"abc").hexdigest(), "timestamp_ms": 7,
    }  # fmt: skip
