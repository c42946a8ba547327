"""Guard the stages: an unexpected exception affects only the input that causes it; the rest of its batch continues.

A stage runs once over a whole batch. If an input makes it raise, it runs again over the halves of the batch, down to
single inputs. An input that fails alone becomes a dead letter with the reason `INTERNAL`. Stages are pure, or write the
same object again, so running twice changes nothing. Without an exception, a guard is one ``try`` per batch.

Exceptions that no input can cause stop the batch: interrupts, and errors of stores, brokers, servers and the machine's
files. A runner such as Beam replaces them by its own, so `keep_error` keeps the original for the user.
"""

from __future__ import annotations

import concurrent.futures
import hashlib
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

from ciml.errors import CimlError, EngineError, RejectedInput, drop_frames
from ciml.events.records import UNJUDGED, Batch, Message, Origin, Outcome, PendingRun, Trust
from ciml.limits import MAX_ERROR_CHARACTERS, MAX_TRACEBACK_BYTES

#: The reason of an input for which a stage raised an unexpected exception.
INTERNAL = "internal_error"

_NOT_OF_INPUTS = (
    CimlError,  # a user's mistake, or an engine, store or manifest
    OSError,  # a file, a socket, a timeout
    ImportError,
    concurrent.futures.BrokenExecutor,
    concurrent.futures.CancelledError,
)
#: Module and name of errors of client libraries. They are not imported: a library that is not loaded raises nothing.
_NOT_OF_INPUTS_BY_NAME = (
    ("confluent_kafka", "KafkaException"),
    ("botocore.exceptions", "BotoCoreError"),
    ("botocore.exceptions", "ClientError"),
    ("grpc", "RpcError"),
)
_MAX_MESSAGE_CHARACTERS = 4096  # that are searched for secrets
_CUT_CHARACTERS = 1024  # at the end of what is searched, where a secret may be cut and is not recognised
_MAX_FRAMES = 64  # of a traceback, innermost first
_MAX_KEPT_ERRORS = 100

T = TypeVar("T")
R = TypeVar("R")

_kept_errors: list[CimlError] = []
_times_cleared = 0


def is_input_fault(error: BaseException) -> bool:
    """Return whether an exception of a stage is caused by its input."""
    if not isinstance(error, Exception) or isinstance(error, _NOT_OF_INPUTS):
        return False
    for module, name in _NOT_OF_INPUTS_BY_NAME:
        kind = getattr(sys.modules.get(module), name, None)
        if kind is not None and isinstance(error, kind):
            return False
    return True


def attempt(stage: str, function: Callable[..., R], *arguments: Any) -> R | RejectedInput:
    """Call a function for one input.

    Returns:
      Its result; or a rejection with `INTERNAL`, or the `RejectedInput` that it raised.

    Raises:
      BaseException: an error that the input did not cause (`is_input_fault`).
    """
    try:
        return function(*arguments)
    except Exception as error:  # noqa: BLE001  # `rejection` raises it again unless the input caused it
        return rejection(stage, error)


def bisect(
    stage: str, items: Sequence[T], work: Callable[[Sequence[T]], R]
) -> Iterator[tuple[Sequence[T], R | RejectedInput]]:
    """Process items together; if that raises, process their halves, down to single items.

    Args:
      stage: name of the stage, for the detail of rejections.
      items: inputs of one batch.
      work: processes a part of them; may be called several times with the same item.

    Yields:
      (items, result of ``work``), in order; for an item that fails alone, its rejection as from `attempt`.

    Raises:
      BaseException: as `attempt`; also any error of ``work`` without items.
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
    half = len(items) // 2  # outside of ``except``: the error's traceback would keep the batch in memory
    yield from bisect(stage, items[:half], work)
    yield from bisect(stage, items[half:], work)


def guarded_runs(stage: str, function: Callable[[Batch], Batch], batch: Batch) -> Batch:
    """Run a stage over a batch's pending runs and outcomes; one that makes it raise becomes a dead letter.

    Args:
      stage: the stage's name.
      function: the stage. It returns its batch with fewer pending runs and more settled ones, both in order. It may
        change the fields of pending runs that stages fill in.
      batch: with pending runs, outcomes, or both.
    """
    items: list[PendingRun | Outcome] = [*batch.settled, *batch.pending_runs]
    fields = {id(pending): (pending.trust, pending.log, pending.telemetry) for pending in batch.pending_runs}

    def work(part: Sequence[PendingRun | Outcome]) -> Batch:
        if len(part) == len(items):
            return function(batch)
        pending_runs = [item for item in part if isinstance(item, PendingRun)]
        for pending in pending_runs:  # undo changes of the failed call
            pending.trust, pending.log, pending.telemetry = fields[id(pending)]
        outcomes = [item for item in part if isinstance(item, Outcome)]
        return function(Batch(batch.covers, [], pending_runs, outcomes))

    return _join(Batch(batch.covers, batch.messages), bisect(stage, items, work), dead_letter)


def guarded_messages(stage: str, function: Callable[[Batch], Batch], batch: Batch) -> Batch:
    """Run a stage that decodes a batch's messages; one that makes it raise becomes a dead letter without a run.

    Args:
      stage: the stage's name.
      function: the stage. It returns its batch without messages.
      batch: the messages, with their range of offsets; without messages, the stage runs unguarded.
    """
    covers = batch.covers
    messages = batch.messages
    if covers is None or not messages:
        return function(batch)

    def work(part: Sequence[Message]) -> Batch:
        return function(batch if len(part) == len(messages) else Batch(covers, list(part)))

    def to_dead_letter(message: Message, rejected: RejectedInput) -> Outcome:
        return unread_dead_letter(Origin(covers.topic, covers.partition, message.offset), message, rejected)

    joined = Batch(covers, [], list(batch.pending_runs), list(batch.settled))
    return _join(joined, bisect(stage, messages, work), to_dead_letter)


def _join(
    joined: Batch,
    parts: Iterator[tuple[Sequence[T], Batch | RejectedInput]],
    to_dead_letter: Callable[[T, RejectedInput], Outcome],
) -> Batch:
    """Add the parts of a batch in order to ``joined``; return a part that is the whole batch unchanged instead."""
    results = list(parts)
    if len(results) == 1:
        _, result = results[0]
        if isinstance(result, Batch):
            return result
    for items, result in results:
        if isinstance(result, RejectedInput):
            joined.settled.append(to_dead_letter(items[0], result))
        else:
            joined.pending_runs += result.pending_runs
            joined.settled += result.settled
    return joined


def dead_letter(item: PendingRun | Outcome, rejected: RejectedInput) -> Outcome:
    """Return the dead letter of a pending run or of its outcome. One without a decision on trust is not trusted."""
    trust = Trust(False, rejected.reason, "") if item.trust == UNJUDGED and item.mention is not None else item.trust
    if isinstance(item, Outcome):
        return item.replace(
            trust=trust,
            kind="dead_letter",
            reason=rejected.reason,
            detail=rejected.detail,
            file=None,
            output=None,
            updates=(),
            not_before_us=None,
        )
    payload = _payload_of(item.message) if item.message else None
    return item.outcome("dead_letter", rejected.reason, rejected.detail, payload=payload).replace(trust=trust)


def unread_dead_letter(origin: Origin, message: Message, rejected: RejectedInput) -> Outcome:
    """Return the dead letter of a message whose run is unknown."""
    return Outcome("dead_letter", origin, reason=rejected.reason, detail=rejected.detail, payload=_payload_of(message))


def _payload_of(message: Message) -> Mapping[str, Any]:
    """Return the payload of a dead letter; if the message breaks that, too, only its size and digest."""
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
    plain = _printable(message[:_MAX_MESSAGE_CHARACTERS])
    if len(message) > _MAX_MESSAGE_CHARACTERS:
        plain = plain[:-_CUT_CHARACTERS]
    message = plain[:MAX_ERROR_CHARACTERS]
    description = _printable(type(error).__name__)[:MAX_ERROR_CHARACTERS]
    if message:
        description += f": {message}"
    return RejectedInput(INTERNAL, f"{stage}: {description} [{_format_frames(error.__traceback__)}]")


def _format_frames(tb: TracebackType | None) -> str:
    """Format the innermost frames as ``file:line function``, the innermost last; repeats in a row appear once."""
    frames: list[str] = []
    budget = MAX_TRACEBACK_BYTES
    for frame, line in islice(reversed(list(traceback.walk_tb(tb))), _MAX_FRAMES):
        file = "/".join(Path(frame.f_code.co_filename).parts[-2:])
        call = _printable(f"{file}:{line} {frame.f_code.co_name}")
        if frames and frames[-1] == call:
            continue
        budget -= len(call.encode()) + len(" > ")
        if budget < 0:
            break
        frames.append(call)
    return " > ".join(reversed(frames))


def _printable(text: str) -> str:
    """Replace secrets and unprintable characters."""
    from ciml.events.payloads import redact_bytes

    plain = redact_bytes(text.encode(errors="replace")).decode(errors="replace")
    return "".join(character if character.isprintable() else " " for character in plain)


@contextmanager
def keep_error() -> Iterator[None]:
    """Keep a `CimlError` of the block for `kept_error`: a runner would turn it into an error about Beam.

    A block that began before the errors were cleared belongs to an earlier job, and its error is not kept.
    """
    times_cleared = _times_cleared
    try:
        yield
    except CimlError as error:
        if times_cleared == _times_cleared and len(_kept_errors) < _MAX_KEPT_ERRORS:
            _kept_errors.append(error)
        raise


def kept_error(*, clear: bool = False) -> CimlError | None:
    """Return the first error of this process that no retry can fix; else the first of an engine; else None.

    Args:
      clear: whether to forget all errors.
    """
    global _times_cleared
    first = _kept_errors[0] if _kept_errors else None
    first = next((error for error in _kept_errors if not isinstance(error, EngineError)), first)
    if clear:
        _times_cleared += 1
        _kept_errors.clear()
    return first
