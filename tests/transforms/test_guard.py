"""The guard: which exceptions are an input's, what its dead letter says, and that the rest of a batch goes on."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import BrokenExecutor, CancelledError

import grpc
import pytest
from botocore.exceptions import ClientError, EndpointConnectionError
from confluent_kafka import KafkaException

from ciml.errors import CimlError, EngineError, IntegrityError, RejectedInput
from ciml.events import payloads
from ciml.events.payloads import message_of
from ciml.events.records import Batch, Message, OffsetRange, Origin, Outcome, PendingRun, RunFacts
from ciml.transforms import guard
from ciml.transforms.guard import attempt, bisect, guarded_runs, keep_error, kept_error


def _raise(error: BaseException) -> None:
    raise error


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


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("x" * 290 + "ghp_" + "a1" * 18, "x" * 290),  # a part of a token is not recognised as one
        ("x " * 5_000, "x x x x"),
        (f"password={'a' * 4070} ghp_{'a1' * 18}", ""),  # the part that is searched ends within the token
    ],
)
def test_a_message_is_redacted_before_it_is_cut(text: str, shown: str) -> None:
    rejected = attempt("parse", _raise, ValueError(text))
    assert isinstance(rejected, RejectedInput)
    assert "ghp_" not in rejected.detail
    assert shown in rejected.detail


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


def test_a_dead_letter_can_be_tried_again() -> None:
    """A stage that eats the logs of its candidates before it fails for one is run again without that one."""
    covers = OffsetRange("t", "id", 3, 10, 20)
    runs = [
        PendingRun(Origin("t", 3, 10 + n), f"e{n}", RunFacts(f"zuul~{n}~1", f"{n}"), Message(10 + n, f"v{n}".encode()),
                  attempts=2, first_seen_us=5, log=b"log")
        for n in range(3)
    ]  # fmt: skip

    def stage(batch: Batch) -> Batch:
        for each in batch.pending_runs:
            assert each.log == b"log", "the log was eaten by an earlier try"
            each.log = None
            if each.mention.build_uuid == "1":
                raise IndexError("one")
        return Batch(covers, settled=[*batch.settled, *(Outcome("run", each.origin) for each in batch.pending_runs)])

    batch = guarded_runs("eat", stage, Batch(covers, [], runs, [Outcome("ignored", Origin("t", 3, 19))]))
    assert [(each.kind, each.origin.offset) for each in batch.settled] == [
        ("ignored", 19), ("run", 10), ("dead_letter", 11), ("run", 12)
    ]  # fmt: skip
    dead_letter = batch.settled[2]
    assert dead_letter.detail.startswith("eat: IndexError: one [")
    assert (dead_letter.event_key, dead_letter.run_id) == ("e1", "zuul~1~1")
    assert (dead_letter.attempts, dead_letter.first_seen_us) == (2, 5)
    assert message_of(dead_letter.payload or {}, 11) == runs[1].message


def test_a_payload_that_cannot_be_made_is_size_and_digest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(payloads, "payload_of", lambda message: _raise(ValueError("payload")))
    assert guard._payload_of(Message(1, b"abc", timestamp_ms=7)) == {
        "size": 3, "sha256": hashlib.sha256(b"abc").hexdigest(), "timestamp_ms": 7,
    }  # fmt: skip


def fail(error: CimlError) -> None:
    with pytest.raises(CimlError), keep_error():
        raise error


def test_the_first_error_that_no_further_try_can_fix_is_returned() -> None:
    kept_error(clear=True)
    fail(EngineError("no answer"))
    assert str(kept_error()) == "no answer"
    fail(IntegrityError("lost"))
    fail(IntegrityError("lost again"))
    assert str(kept_error(clear=True)) == "lost"
    assert kept_error() is None


def test_an_error_of_a_call_that_began_before_the_next_job_is_not_kept() -> None:
    @keep_error()
    def call() -> None:
        kept_error(clear=True)  # a job begins, while this call of the one before it still waits
        raise IntegrityError("of the earlier job")

    with pytest.raises(IntegrityError):
        call()
    assert kept_error() is None
