"""Sending of leftover recordings: recordings of earlier recorders that are still in the spool.

The next recorder sends them next to its own recording (`Leftovers`), and ``ciml record --send`` sends all of them
(`send_leftovers`). `ciml.recorder.spool.seals` decides whether a recording is sent, where to, and with which facts.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from functools import lru_cache
from typing import Literal

from ciml.errors import CimlError, EngineError
from ciml.kafka import KafkaOptions
from ciml.limits import MAX_SPOOL_BYTES
from ciml.recorder import Settings, report
from ciml.recorder.spool.delivery import Delivery, Sender
from ciml.recorder.spool.folder import Folder, open_private
from ciml.recorder.spool.recording import Destination, End, Recording, list_spool, size_of
from ciml.recorder.spool.seals import POLICY_FACTS, lacks_facts, plan_for_command, plan_for_recorder

_MAX_REPORTED_LINES = 3
_RECORDINGS_PER_STEP = 10  # that are opened between two samples


class Leftovers:
    """Sends the leftover recordings one after another, in small steps, while this process records.

    A recording that cannot be read or sent is reported and left in place; other recordings continue.

    Args:
      own: the recorder's own recording.
      settings: settings of the recorder.
      sender: sender of its broker.
    """

    def __init__(self, own: Recording, settings: Settings, sender: Sender | None) -> None:
        self._own_plan = own.plan
        self._settings = settings
        self._sender = sender
        self._own_name = own.folder.path.name
        self._pending_names: list[str] = []
        self._delivery: Delivery | None = None
        self._lines = 0

    def open(self) -> None:
        """Open the spool, and delete its oldest recordings beyond `MAX_SPOOL_BYTES`. Call it before `step`."""
        try:
            self._spool = open_private(self._settings.spool)
            names, has_more = list_spool(self._spool)
        except (CimlError, OSError) as error:
            self._report(f"not sending earlier recordings: {error}")
            return
        if has_more:
            self._report(f"{self._settings.spool} holds more than {len(names)} entries; the others wait")
        self._pending_names = trim(self._spool, [name for name in names if name != self._own_name])

    def step(self) -> None:
        """Send as much as possible of one recording without blocking."""
        for _ in range(_RECORDINGS_PER_STEP):
            if self._delivery is not None or not self._pending_names:
                break
            self._delivery = self._take(self._pending_names.pop(0))
        if self._delivery is not None and not self._continue(self._delivery):
            self._delivery = None

    def _take(self, name: str) -> Delivery | None:
        """Lock a recording and return its delivery; None, without a lock, where this recorder does not send it."""
        recording = None
        delivery = None
        try:
            recording = Recording.take(self._spool, name)
            if recording is None:
                return None
            plan = plan_for_recorder(recording, self._own_plan, self._settings)
            if plan is not None:
                recording.plan = plan
                delivery = _deliver(recording, self._sender)
        except (CimlError, OSError) as error:
            self._report(f"left in the spool: {error}")
        if recording is not None and delivery is None:
            recording.release()
        return delivery

    def _continue(self, delivery: Delivery) -> bool:
        """Continue to send a recording. Return False once it was removed or given up."""
        recording = delivery.recording
        try:
            if delivery.step():
                if problem := recording.remove():
                    self._report(f"{recording.plan.mention.run_id} sent, but {problem}")
                return False
            failure = delivery.failure
        except CimlError as error:
            failure = str(error)
        if failure:  # a later recorder retries; until then it does not block others
            self._report(f"left in the spool: {recording.folder.path}: {failure}")
            recording.release()
        return not failure

    def _report(self, line: str) -> None:
        self._lines += 1
        if self._lines <= _MAX_REPORTED_LINES:
            report(line)
        elif self._lines == _MAX_REPORTED_LINES + 1:
            report("more recordings are unsent; run ciml record --send for details")


def send_leftovers(settings: Settings, destination: Destination) -> None:
    """Send every recording of the spool that no process is recording.

    Args:
      settings: the spool, the broker and the timeout.
      destination: destination of the command line, for recordings whose own destination is not trusted.

    Raises:
      CimlError: the spool is not a private folder of this user, or cannot be read.
      EngineError: some recordings could not be sent, or not be removed.
    """
    try:
        spool = open_private(settings.spool)
    except FileNotFoundError:
        report("0 recordings sent")
        return
    except OSError as error:
        raise CimlError(f"{settings.spool}: cannot read the spool ({error.strerror})") from None
    sender_of = lru_cache(1)(Sender)  # one sender at a time: recordings may name any number of brokers
    names, has_more = list_spool(spool)
    results = Counter(_send_entry(spool, name, sender_of, settings, destination) for name in names)
    if has_more:
        report(f"{settings.spool} holds more than {len(names)} entries; run ciml record --send again for the others")
    sent = results["removed"] + results["unremoved"]
    if results["failed"]:
        raise EngineError(f"{results['failed']} recordings not sent, kept in {settings.spool}; {sent} sent")
    if results["unremoved"]:
        raise EngineError(
            f"{sent} recordings sent, but {results['unremoved']} of them cannot be removed from {settings.spool}"
        )
    report(f"{sent} recordings sent")


def _send_entry(
    spool: Folder,
    name: str,
    sender_of: Callable[[KafkaOptions], Sender],
    settings: Settings,
    destination: Destination,
) -> Literal["skipped", "failed", "removed", "unremoved"]:
    """Send an entry of the spool, and report the result. A recording in progress is skipped."""
    try:
        recording = Recording.take(spool, name)
    except CimlError as error:
        report(str(error))
        return "failed"
    if recording is None:
        return "skipped"
    run_id = recording.plan.mention.run_id
    try:
        _send(recording, sender_of, settings, destination)
    except (CimlError, OSError) as error:
        reason = f"{recording.folder.path}: {error.strerror or error}" if isinstance(error, OSError) else str(error)
        recording.release()
        report(f"{run_id} not sent: {reason}")
        return "failed"
    omission = f" without {', '.join(POLICY_FACTS)} (not sealed)" if lacks_facts(recording.plan) else ""
    problem = recording.remove()
    report(f"{run_id} sent{omission}" + (f", but {problem}" if problem else ""))
    return "unremoved" if problem else "removed"


def _send(
    recording: Recording, sender_of: Callable[[KafkaOptions], Sender], settings: Settings, destination: Destination
) -> None:
    """Send one recording; give up after ``flush_s`` seconds without progress.

    Raises:
      CimlError: the recording must not or could not be sent.
      OSError: the recording cannot be read.
    """
    recording.plan, kafka = plan_for_command(recording, settings, destination)
    sender = sender_of(kafka) if kafka else None
    delivery = _deliver(recording, sender)
    progress = delivery.progress
    deadline = time.monotonic() + settings.flush_s
    while not delivery.step():
        if sender is not None:
            sender.poll(0.05)
        if delivery.progress != progress:
            progress = delivery.progress
            deadline = time.monotonic() + settings.flush_s
        if time.monotonic() > deadline or (delivery.failure and sender is None):
            reason = delivery.failure or (sender.connection_error if sender else "") or "the flush time is over"
            remedy = "" if kafka == settings.kafka else "; --kafka HOST:PORT names another broker"
            raise EngineError(f"{reason}{remedy}")


def trim(spool: Folder, names: list[str]) -> list[str]:
    """Delete the oldest recordings that no process uses, until the others have at most `MAX_SPOOL_BYTES`.

    Args:
      spool: the spool's folder.
      names: entries of the spool, oldest first.

    Returns:
      The names of the remaining entries.
    """
    sizes = {name: _size(spool, name) for name in names}
    total = sum(sizes.values())
    remaining = list(names)
    for name in names:
        if total <= MAX_SPOOL_BYTES:
            break
        try:
            recording = Recording.take(spool, name)
        except CimlError:
            continue
        if recording is not None and not recording.remove():
            remaining.remove(name)
            total -= sizes[name]
            report(f"the spool is full; deleted its oldest recording, run {recording.plan.mention.run_id}")
    return remaining


def _size(spool: Folder, name: str) -> int:
    """Return the bytes of a recording; 0 for another entry."""
    try:
        with spool.folder(name) as folder:
            return size_of(folder)
    except (CimlError, OSError):
        return 0


def _deliver(recording: Recording, sender: Sender | None) -> Delivery:
    """Return the delivery of a leftover recording by its plan, which the caller has set."""
    # Without an end, the command was killed with its recorder.
    end = recording.end() or End(recording.changed_us(), "ABORTED", {"recorder": "killed"})
    return Delivery(recording, sender, end, announce=not lacks_facts(recording.plan))
