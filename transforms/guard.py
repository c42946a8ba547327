"""Guard: an unexpected exception costs the input that raises it, and the rest of its batch goes on.

A stage runs over a whole batch at once. Where it raises what is the input's fault, it runs again over the halves, down
to single inputs; one that fails alone becomes a dead letter with the reason `INTERNAL`. Stages are pure, or write the
same object again, so running twice changes nothing. Where nothing is raised, a guard is one ``try`` around the batch.

What no input can cause passes through and stops the batch: interrupts, and errors of stores, brokers, servers and the
machine's files.
"""

from __future__ import annotations

import concurrent.futures
import hashlib
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

from ciml.errors import CimlError, RejectedInput, let_go
from ciml.events.payload_redaction import redact_bytes
from ciml.events.payloads import payload_of
from ciml.events.records import Batch, Message, Origin, Outcome, PendingRun
from ciml.limits import MAX_ERROR_CHARACTERS, MAX_TRACEBACK_BYTES

#: The reason of an input that a stage raised an unexpected exception for.
INTERNAL = "internal_error"

_PASSING = (
    CimlError,  # a user's mistake, or an engine, store or manifest
    OSError,  # a file, a socket; time is over
    ImportError,
    concurrent.futures.BrokenExecutor,
    concurrent.futures.CancelledError,
)
#: Of libraries that talk to engines, by module: one that is not loaded has raised nothing.
_PASSING_ELSEWHERE = (
    ("confluent_kafka", "KafkaException"),
    ("botocore.exceptions", "BotoCoreError"),
    ("botocore.exceptions", "ClientError"),
    ("grpc", "RpcError"),
)
_READ_AT_MOST = 4096  # characters of a message that are looked at
_FRAMES_AT_MOST = 64  # of a traceback that are looked at, innermost first

T = TypeVar("T")
R = TypeVar("R")


def is_input_fault(error: BaseException) -> bool:
    """Return whether an exception of a stage is the fault of what it worked on."""
    if not isinstance(error, Exception) or isinstance(error, _PASSING):
        return False
    elsewhere = (getattr(sys.modules.get(module), name, None) for module, name in _PASSING_ELSEWHERE)
    return not isinstance(error, tuple(kind for kind in elsewhere if kind is not None))


def attempt(stage: str, function: Callable[..., R], *arguments: Any) -> R | RejectedInput:
    """Call a function for one input.

    Returns:
      Its result; or why the input cannot be used: `INTERNAL`, or the reason of a `RejectedInput` that it raised.

    Raises:
      BaseException: what is not the input's fault (`is_input_fault`).
    """
    try:
        return function(*arguments)
    except Exception as error:  # noqa: BLE001  # `rejection` raises it again where it is not the input's fault
        return rejection(stage, error)


def bisect(
    stage: str, items: Sequence[T], work: Callable[[Sequence[T]], R]
) -> Iterator[tuple[Sequence[T], R | RejectedInput]]:
    """Work on items together; where that raises, on their halves, down to single ones.

    Args:
      stage: named in the detail of what is refused.
      items: inputs of one batch.
      work: what to do with some of them. It may be called several times with the same item.

    Yields:
      (items, what ``work`` made of them), in order; for an item that fails alone, why, as `attempt` has it.

    Raises:
      BaseException: as `attempt`; also where there are no items and the work fails all the same.
    """
    try:
        made = work(items)
    except Exception as error:
        if not items:
            raise
        rejected = rejection(stage, error)
    else:
        yield items, made
        return
    if len(items) == 1:
        yield items, rejected
        return
    half = len(items) // 2  # no traceback holds the batch any more
    yield from bisect(stage, items[:half], work)
    yield from bisect(stage, items[half:], work)


def guarded_runs(stage: str, function: Callable[[Batch], Batch], batch: Batch) -> Batch:
    """Return a stage over a batch's candidates and outcomes; one that raises becomes a dead letter.

    Args:
      stage: the stage's name.
      function: returns its batch with fewer candidates and more settled, both in their order. It may change what stages
        fill in of a candidate.
      batch: with candidates, outcomes, or both.
    """
    items: list[PendingRun | Outcome] = [*batch.settled, *batch.pending_runs]
    before = {id(each): (each.trust, each.log, each.telemetry) for each in batch.pending_runs}

    def work(some: Sequence[PendingRun | Outcome]) -> Batch:
        if len(some) == len(items):
            return function(batch)
        pending_runs = [each for each in some if isinstance(each, PendingRun)]
        for each in pending_runs:  # a stage that failed may have changed it
            each.trust, each.log, each.telemetry = before[id(each)]
        return function(Batch(batch.covers, [], pending_runs, [each for each in some if isinstance(each, Outcome)]))

    return _together(Batch(batch.covers, batch.messages), bisect(stage, items, work), dead_letter)


def guarded_messages(stage: str, function: Callable[[Batch], Batch], batch: Batch) -> Batch:
    """Return a stage that decodes a batch's messages; one that raises becomes a dead letter of no run.

    Args:
      stage: the stage's name.
      function: returns its batch without messages.
      batch: with the range that it covers, where it has messages.
    """
    covers, messages = batch.covers, batch.messages
    if covers is None or not messages:
        return function(batch)

    def work(some: Sequence[Message]) -> Batch:
        return function(batch if len(some) == len(messages) else Batch(covers, list(some)))

    def letter(message: Message, rejected: RejectedInput) -> Outcome:
        return unread_dead_letter(Origin(covers.topic, covers.partition, message.offset), message, rejected)

    rest = Batch(covers, [], list(batch.pending_runs), list(batch.settled))
    return _together(rest, bisect(stage, messages, work), letter)


def _together(
    rest: Batch,
    parts: Iterator[tuple[Sequence[T], Batch | RejectedInput]],
    letter: Callable[[T, RejectedInput], Outcome],
) -> Batch:
    """The parts of a batch as one, in their order, behind ``rest``; a part that is the whole batch is it alone."""
    found = list(parts)
    if len(found) == 1 and isinstance(whole := found[0][1], Batch):
        return whole
    for some, made in found:
        if isinstance(made, RejectedInput):
            rest.settled.append(letter(some[0], made))
        else:
            rest.pending_runs += made.pending_runs
            rest.settled += made.settled
    return rest


def dead_letter(item: PendingRun | Outcome, rejected: RejectedInput) -> Outcome:
    """Return a candidate, or what had become of one, as a dead letter."""
    if isinstance(item, Outcome):
        return item.replace(
            kind="dead_letter", reason=rejected.reason, detail=rejected.detail, file=None, not_before_us=None
        )
    return Outcome(
        "dead_letter", item.origin, item.event_key, item.mention, rejected.reason, rejected.detail,
        item.trust, payload=kept_payload(item.message) if item.message else None,
        attempts=item.attempts, first_seen_us=item.first_seen_us,
    )  # fmt: skip


def unread_dead_letter(origin: Origin, message: Message, rejected: RejectedInput) -> Outcome:
    """Return a message of which no run is known, as a dead letter."""
    return Outcome("dead_letter", origin, reason=rejected.reason, detail=rejected.detail, payload=kept_payload(message))


def kept_payload(message: Message) -> dict[str, Any]:
    """`ciml.events.payloads.payload_of`. If that fails: size and digest alone, as for a message that is too large."""
    made = attempt("payload", payload_of, message)
    if not isinstance(made, RejectedInput):
        return made
    value = message.value or b""
    return {"size": len(value), "sha256": hashlib.sha256(value).hexdigest(), "timestamp_ms": message.timestamp_ms}


def rejection(stage: str, error: Exception) -> RejectedInput:
    """Why an input is refused that a stage raised an exception for.

    Returns:
      A `RejectedInput` itself; any other error as one with the reason `INTERNAL`. Its detail is one printable line:
      stage, type, message of at most `MAX_ERROR_CHARACTERS`, and the innermost frames in `MAX_TRACEBACK_BYTES`, both
      without secrets.

    Raises:
      Exception: the error, where it is not the input's fault.
    """
    if isinstance(error, RejectedInput):
        let_go(error)
        return error
    if not is_input_fault(error):
        raise error
    try:
        said = str(error)
    except Exception:  # noqa: BLE001  # an exception's own text may fail for what it holds
        said = ""
    said = _printable(said[:_READ_AT_MOST])[:MAX_ERROR_CHARACTERS]
    kind = _printable(type(error).__name__)[:MAX_ERROR_CHARACTERS]
    return RejectedInput(INTERNAL, f"{stage}: {kind}{f': {said}' if said else ''} [{_frames(error.__traceback__)}]")


def _frames(tb: TracebackType | None) -> str:
    """``file:line function`` of the innermost frames, the innermost last, a repeated one once."""
    kept: list[str] = []
    left = MAX_TRACEBACK_BYTES
    for frame, line in islice(reversed(list(traceback.walk_tb(tb))), _FRAMES_AT_MOST):
        place = "/".join(Path(frame.f_code.co_filename).parts[-2:])
        call = _printable(f"{place}:{line} {frame.f_code.co_name}")
        if kept and kept[-1] == call:
            continue  # of a recursion
        left -= len(call.encode()) + len(" > ")
        if left < 0:
            break
        kept.append(call)
    return " > ".join(reversed(kept))


def _printable(text: str) -> str:
    plain = redact_bytes(text.encode(errors="replace")).decode(errors="replace")
    return "".join(each if each.isprintable() else " " for each in plain)
