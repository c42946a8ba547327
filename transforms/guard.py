"""Guard: an unexpected exception affects only the input that raises it; the rest of its batch continues.

A stage runs over a whole batch at once. Where it raises an exception caused by an input, it runs again over the halves,
down to single inputs. An input that fails alone becomes a dead letter with the reason `INTERNAL`. Stages are pure, or
write the same object again, so running twice changes nothing. Without an exception, a guard is one ``try`` per batch.

Exceptions that no input can cause pass through and stop the batch: interrupts, and errors of stores, brokers, servers
and the machine's files.
"""

from __future__ import annotations

import concurrent.futures
import hashlib
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

from ciml.errors import CimlError, RejectedInput, drop_frames
from ciml.events.records import Batch, Message, Origin, Outcome, PendingRun
from ciml.limits import MAX_ERROR_CHARACTERS, MAX_TRACEBACK_BYTES

#: The reason of an input for which a stage raised an unexpected exception.
INTERNAL = "internal_error"

_PASSING = (
    CimlError,  # a user's mistake, or an engine, store or manifest
    OSError,  # a file, a socket, a timeout
    ImportError,
    concurrent.futures.BrokenExecutor,
    concurrent.futures.CancelledError,
)
#: Errors of client libraries, by module: a library that is not loaded has raised nothing.
_PASSING_ELSEWHERE = (
    ("confluent_kafka", "KafkaException"),
    ("botocore.exceptions", "BotoCoreError"),
    ("botocore.exceptions", "ClientError"),
    ("grpc", "RpcError"),
)
_READ_AT_MOST = 4096  # characters of a message that are read
_FRAMES_AT_MOST = 64  # of a traceback that are read, innermost first

T = TypeVar("T")
R = TypeVar("R")


def is_input_fault(error: BaseException) -> bool:
    """Return whether an exception of a stage is caused by its input."""
    if not isinstance(error, Exception) or isinstance(error, _PASSING):
        return False
    elsewhere = (getattr(sys.modules.get(module), name, None) for module, name in _PASSING_ELSEWHERE)
    return not isinstance(error, tuple(kind for kind in elsewhere if kind is not None))


def attempt(stage: str, function: Callable[..., R], *arguments: Any) -> R | RejectedInput:
    """Call a function for one input.

    Returns:
      Its result; or a rejection with `INTERNAL`, or the `RejectedInput` that it raised.

    Raises:
      BaseException: an error that the input did not cause (`is_input_fault`).
    """
    try:
        return function(*arguments)
    except Exception as error:  # noqa: BLE001  # `rejection` raises it again where it is not the input's fault
        return rejection(stage, error)


def bisect(
    stage: str, items: Sequence[T], work: Callable[[Sequence[T]], R]
) -> Iterator[tuple[Sequence[T], R | RejectedInput]]:
    """Process items together; where that raises, their halves, down to single items.

    Args:
      stage: name of the stage, for the detail of rejections.
      items: inputs of one batch.
      work: processes some of them; may be called several times with the same item

    Yields:
      (items, result of ``work``), in order; for an item that fails alone, its rejection as from `attempt`.

    Raises:
      BaseException: as `attempt`; also where work without items fails.
    """
    try:
        result = work(items)
    except Exception as error:
        if not items:
            raise
        rejected = rejection(stage, error)
    else:
        yield items, result
        return
    if len(items) == 1:
        yield items, rejected
        return
    half = len(items) // 2  # no traceback holds the batch any more
    yield from bisect(stage, items[:half], work)
    yield from bisect(stage, items[half:], work)


def guarded_runs(stage: str, function: Callable[[Batch], Batch], batch: Batch) -> Batch:
    """Run a stage over a batch's pending runs and outcomes; one that raises becomes a dead letter.

    Args:
      stage: the stage's name.
      function: returns its batch with fewer pending runs and more settled, both in order. It may change the fields that
        stages fill in.
      batch: with pending runs, outcomes, or both.
    """
    items: list[PendingRun | Outcome] = [*batch.settled, *batch.pending_runs]
    before = {id(pending): (pending.trust, pending.log, pending.telemetry) for pending in batch.pending_runs}

    def work(part: Sequence[PendingRun | Outcome]) -> Batch:
        if len(part) == len(items):
            return function(batch)
        pending_runs = [item for item in part if isinstance(item, PendingRun)]
        for pending in pending_runs:  # the failed stage may have changed it
            pending.trust, pending.log, pending.telemetry = before[id(pending)]
        return function(Batch(batch.covers, [], pending_runs, [item for item in part if isinstance(item, Outcome)]))

    return _together(Batch(batch.covers, batch.messages), bisect(stage, items, work), dead_letter)


def guarded_messages(stage: str, function: Callable[[Batch], Batch], batch: Batch) -> Batch:
    """Run a stage that decodes a batch's messages; one that raises becomes a dead letter without a run.

    Args:
      stage: the stage's name.
      function: returns its batch without messages.
      batch: with its range of offsets, where it has messages.
    """
    covers = batch.covers
    messages = batch.messages
    if covers is None or not messages:
        return function(batch)

    def work(some: Sequence[Message]) -> Batch:
        return function(batch if len(some) == len(messages) else Batch(covers, list(some)))

    def to_dead_letter(message: Message, rejected: RejectedInput) -> Outcome:
        return unread_dead_letter(Origin(covers.topic, covers.partition, message.offset), message, rejected)

    remainder = Batch(covers, [], list(batch.pending_runs), list(batch.settled))
    return _together(remainder, bisect(stage, messages, work), to_dead_letter)


def _together(
    rest: Batch,
    parts: Iterator[tuple[Sequence[T], Batch | RejectedInput]],
    to_dead_letter: Callable[[T, RejectedInput], Outcome],
) -> Batch:
    """Join the parts of a batch in order, behind ``rest``; return a part that is the whole batch unchanged."""
    results = list(parts)
    if len(results) == 1 and isinstance(only := results[0][1], Batch):
        return only
    for items, result in results:
        if isinstance(result, RejectedInput):
            rest.settled.append(to_dead_letter(items[0], result))
        else:
            rest.pending_runs += result.pending_runs
            rest.settled += result.settled
    return rest


def dead_letter(item: PendingRun | Outcome, rejected: RejectedInput) -> Outcome:
    """Return the dead letter of a pending run or of its outcome."""
    if isinstance(item, Outcome):
        return item.replace(
            kind="dead_letter",
            reason=rejected.reason,
            detail=rejected.detail,
            file=None,
            updates=(),
            not_before_us=None,
        )
    payload = kept_payload(item.message) if item.message else None
    return item.outcome("dead_letter", rejected.reason, rejected.detail, payload=payload)


def unread_dead_letter(origin: Origin, message: Message, rejected: RejectedInput) -> Outcome:
    """Return the dead letter of a message whose run is unknown."""
    return Outcome("dead_letter", origin, reason=rejected.reason, detail=rejected.detail, payload=kept_payload(message))


def kept_payload(message: Message) -> Mapping[str, Any]:
    """Return `ciml.events.payloads.payload_of`; if that fails, only size and digest, as for an oversized message."""
    from ciml.events.payloads import payload_of  # imports the patterns of secrets, which only failures need

    payload = attempt("payload", payload_of, message)
    if not isinstance(payload, RejectedInput):
        return payload
    value = message.value or b""
    return {"size": len(value), "sha256": hashlib.sha256(value).hexdigest(), "timestamp_ms": message.timestamp_ms}


def rejection(stage: str, error: Exception) -> RejectedInput:
    """Return the rejection of an input for which a stage raised an exception.

    Returns:
      A `RejectedInput` itself; any other error with the reason `INTERNAL`. Its detail is one printable line: stage,
      type, message of at most `MAX_ERROR_CHARACTERS`, and the innermost frames in `MAX_TRACEBACK_BYTES`, both without
      secrets.

    Raises:
      Exception: the error, where the input did not cause it.
    """
    if isinstance(error, RejectedInput):
        drop_frames(error)
        return error
    if not is_input_fault(error):
        raise error
    try:
        message = str(error)
    except Exception:  # noqa: BLE001  # an exception's own text may fail
        message = ""
    message = _printable(message[:_READ_AT_MOST])[:MAX_ERROR_CHARACTERS]
    kind = _printable(type(error).__name__)[:MAX_ERROR_CHARACTERS]
    return RejectedInput(
        INTERNAL, f"{stage}: {kind}{f': {message}' if message else ''} [{_frames(error.__traceback__)}]"
    )


def _frames(tb: TracebackType | None) -> str:
    """Format the innermost frames as ``file:line function``, the innermost last, a repeated one once."""
    frames: list[str] = []
    budget = MAX_TRACEBACK_BYTES
    for frame, line in islice(reversed(list(traceback.walk_tb(tb))), _FRAMES_AT_MOST):
        file = "/".join(Path(frame.f_code.co_filename).parts[-2:])
        call = _printable(f"{file}:{line} {frame.f_code.co_name}")
        if frames and frames[-1] == call:
            continue  # a recursion
        budget -= len(call.encode()) + len(" > ")
        if budget < 0:
            break
        frames.append(call)
    return " > ".join(reversed(frames))


def _printable(text: str) -> str:
    from ciml.events.payloads import redact_bytes

    plain = redact_bytes(text.encode(errors="replace")).decode(errors="replace")
    return "".join(character if character.isprintable() else " " for character in plain)
