"""Sending of leftover recordings: those of earlier recorders, which are still in the spool.

The next recorder sends them next to its own recording (`Leftovers`), and ``ciml record --send`` sends all of them
(`send_leftovers`). `by_recorder` and `by_command` decide whether a recording is sent, where to, and with which facts.
"""

from __future__ import annotations

import shlex
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, replace
from functools import lru_cache
from typing import Literal

from ciml.errors import CimlError, EngineError
from ciml.kafka import KafkaOptions
from ciml.limits import MAX_SPOOL_BYTES
from ciml.recorder.producer import Sender
from ciml.recorder.settings import Settings, report
from ciml.recorder.spool.delivery import Delivery
from ciml.recorder.spool.folder import Folder, open_private
from ciml.recorder.spool.recording import Destination, End, Plan, Recording, list_spool, size_of
from ciml.recorder.spool.seals import is_sealed, secrets_of

#: Facts that a trust policy may match, except the source (part of the run's id). They are left out without a seal, and
#: with them the subjects, by which updates would add facts.
FACTS = ("pipeline", "project", "branch", "event", "review", "fork", "auth", "owner", "adapter")
#: The label of a run whose recording was not sealed.
UNSEALED = {"recording": "unsealed"}
_MAX_REPORTED_LINES = 3
_TAKEN_PER_STEP = 10  # samples are taken between steps


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
        self._waiting_names: list[str] = []
        self._delivery: Delivery | None = None
        self._lines = 0
        try:
            self._spool = open_private(settings.spool)
            names, has_more = list_spool(self._spool)
        except (CimlError, OSError) as error:
            self._report(f"not sending earlier recordings: {error}")
            return
        if has_more:
            self._report(f"{settings.spool} holds more than {len(names)} entries; the others wait")
        self._waiting_names = trim(self._spool, [name for name in names if name != own.folder.path.name])

    def step(self) -> None:
        """Send as much as possible of one of them without blocking."""
        for _ in range(_TAKEN_PER_STEP):
            if self._delivery is not None or not self._waiting_names:
                break
            self._delivery = self._take(self._waiting_names.pop(0))
        if self._delivery is not None and self._is_over(self._delivery):
            self._delivery = None

    def _take(self, name: str) -> Delivery | None:
        """Begin to send a recording; return None where this recorder does not send it."""
        recording = None
        delivery = None
        try:
            recording = Recording.take(self._spool, name)
            if recording is None:
                return None
            plan = by_recorder(recording, self._own_plan, self._settings)
            if plan is not None:
                recording.plan = plan
                delivery = _deliver(recording, self._sender)
        except (CimlError, OSError) as error:
            self._report(f"left in the spool: {error}")
        if recording is not None and delivery is None:
            recording.release()
        return delivery

    def _is_over(self, delivery: Delivery) -> bool:
        """Continue to send a recording. Return whether it has arrived, or was given up."""
        recording = delivery.recording
        try:
            if delivery.step():
                if problem := recording.remove():
                    self._report(f"{recording.plan.mention.run_id} sent, but {problem}")
                return True
            failure = delivery.failure
        except CimlError as error:
            failure = str(error)
        if failure:  # a later recorder retries; until then it does not block others
            self._report(f"left in the spool: {recording.folder.path}: {failure}")
            recording.release()
        return bool(failure)

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
      CimlError: the spool is not a private folder of this user.
      EngineError: some recordings could not be sent, or not be removed.
    """
    try:
        spool = open_private(settings.spool)
    except FileNotFoundError:
        report("0 recordings sent")
        return
    except OSError as error:
        raise CimlError(f"{settings.spool}: cannot read the spool ({error.strerror})") from None
    sender_of = lru_cache(1)(Sender)  # one at a time: recordings may name any number of brokers
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
    omission = f" without {', '.join(FACTS)} (not sealed)" if _is_unsealed(recording.plan) else ""
    problem = recording.remove()
    report(f"{run_id} sent{omission}" + (f", but {problem}" if problem else ""))
    return "unremoved" if problem else "removed"


def _send(
    recording: Recording, sender_of: Callable[[KafkaOptions], Sender], settings: Settings, destination: Destination
) -> None:
    """Send one recording while it makes progress.

    Raises:
      CimlError: it could not be sent.
      OSError: it cannot be read.
    """
    recording.plan, kafka = by_command(recording, settings, destination)
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
            reason = delivery.failure or (sender.connection_error if sender else "")
            reason = reason or f"Kafka at {recording.plan.kafka} does not answer"
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
    """Return the delivery of a leftover recording by its present plan."""
    # Without an end, the command was killed with its recorder.
    end = recording.end() or End(recording.changed_us(), "ABORTED", {"recorder": "killed"})
    return Delivery(recording, sender, end, announce=not _is_unsealed(recording.plan))


def _is_unsealed(plan: Plan) -> bool:
    """Return whether it is sent without the facts that only a seal proves."""
    return UNSEALED.items() <= plan.mention.labels.items()


def by_recorder(recording: Recording, own: Plan, settings: Settings) -> Plan | None:
    """Return the plan with which the recorder of another run may send a recording.

    Args:
      recording: a leftover recording.
      own: the plan of the recorder's own run.
      settings: settings of the recorder.

    Returns:
      The plan; None where this recorder must not send it.

    Raises:
      CimlError: it requires credentials of this recorder that it may not have had.
    """
    plan = recording.plan
    broker = settings.kafka.bootstrap if settings.kafka else ""
    if plan.kafka != broker or not plan.has_destination:
        return None
    secrets = secrets_of(settings.kafka, plan.log_dir)
    if is_sealed(recording, secrets):
        return plan
    if secrets:
        raise CimlError(f"{recording.folder.path} is not sealed with these credentials; use ciml record --send")
    has_own_destination = replace(plan, mention=own.mention) == own
    if plan.mention.source != own.mention.source or not has_own_destination:
        return None
    return _without_facts(plan)


def by_command(recording: Recording, settings: Settings, destination: Destination) -> tuple[Plan, KafkaOptions | None]:
    """Return the plan with which ``ciml record --send`` sends a recording, and its broker.

    Args:
      recording: a leftover recording.
      settings: with the broker of the command line.
      destination: that of the command line: for a recording without a place for its log, or whose own destination is
        not trusted.

    Raises:
      CimlError: the command line must confirm the destination; the message has the options.
    """
    kafka = _broker(recording.plan, settings)
    plan = replace(recording.plan, kafka=kafka.bootstrap if kafka else "")
    secrets = secrets_of(kafka, plan.log_dir)
    sealed = is_sealed(recording, secrets)
    if kafka != settings.kafka and recording.has_seal and not sealed:
        raise CimlError(
            f"its recorder had credentials, which are not stored; give them again: {_option('kafka', plan.kafka)} with "
            "-X or --kafka-config"
        )
    if secrets and not sealed:  # its own destination is not trusted with them
        if plan.log_dir and not destination.log_dir:
            raise CimlError(
                f"the place of its log is not sealed with these credentials; confirm it by "
                f"{_option('log-dir', plan.log_dir)}"
            )
        plan = replace(plan, **asdict(destination))
    elif not plan.log_dir:  # it was recorded without a place for its log
        plan = replace(plan, log_dir=destination.log_dir, log_url=destination.log_url)
    if not plan.has_destination:
        raise CimlError("no destination; give --kafka HOST:PORT or --log-dir FOLDER")
    return plan if sealed else _without_facts(plan), kafka


def _broker(plan: Plan, settings: Settings) -> KafkaOptions | None:
    """Return the broker for a leftover recording.

    A recording may name any address: no Kafka property of the command line goes there unless ``--kafka`` confirms it.
    """
    broker = settings.kafka
    if settings.leftovers == "given" or not plan.kafka or (broker and broker.bootstrap == plan.kafka):
        return broker
    if settings.leftovers == "unconfirmed":
        raise CimlError(
            "its broker gets no Kafka property that --kafka does not confirm; add " + _option("kafka", plan.kafka)
        )
    return KafkaOptions(plan.kafka)


def _option(name: str, value: str) -> str:
    """Return an option as a shell takes it: a recording that another job made may contain anything."""
    return f"--{name} {shlex.quote(value)}"


def _without_facts(plan: Plan) -> Plan:
    """Return the plan without the facts that a trust policy may match."""
    facts = plan.mention
    labels = {**UNSEALED, **facts.labels, **UNSEALED}  # first, so that it stays if there are too many
    return replace(plan, mention=facts.replace(**dict.fromkeys(FACTS, ""), subjects=(), labels=labels))
