"""``ciml record --send``: what earlier recorders have left behind."""

from __future__ import annotations

import time
from dataclasses import replace

from ciml.errors import CimlError, EngineError
from cli.record.delivery import Delivery
from cli.record.kafka import Sender
from cli.record.say import say
from cli.record.spool import Recording, check_owner, leftovers
from cli.record.worker import Settings, end_of


def send_leftovers(settings: Settings) -> None:
    """Sends every recording of the spool that nobody is recording.

    Raises:
      EngineError: some could not be sent.
    """
    check_owner(settings.spool)
    sender = Sender(settings.kafka) if settings.kafka else None
    failed = sent = 0
    for folder in leftovers(settings.spool):
        try:
            recording = Recording.take(folder)
        except CimlError as error:
            failed += 1
            say(str(error))
            continue
        if recording is None:
            continue
        run_id = recording.plan.mention.run_id
        if settings.kafka is not None:
            recording.plan = replace(recording.plan, kafka=settings.kafka.bootstrap)
        why = _send(recording, sender, settings.flush_s)
        if why:
            failed += 1
            recording.release()
            say(f"{run_id} is not sent: {why}")
        else:
            sent += 1
            recording.remove()
            say(f"{run_id} is sent")
    if failed:
        raise EngineError(f"{failed} recordings are not sent, and stay in {settings.spool}; {sent} are")
    say(f"{sent} recordings are sent")


def _send(recording: Recording, sender: Sender | None, patience_s: float) -> str:
    """Sends one, as long as it gets on. Returns why it could not be sent, or ""."""
    if recording.plan.kafka and sender is None:
        return f"its broker was {recording.plan.kafka}: name one by --kafka"
    if not recording.plan.leads_somewhere:
        return "neither --kafka nor the --log-dir that it was recorded with says where to"
    delivery = Delivery(recording, sender if recording.plan.kafka else None, end_of(recording))
    deadline = time.monotonic() + patience_s
    progress = -1
    try:
        while not delivery.step():
            if sender is not None:
                sender.poll(0.05)
            if (now := delivery.progress) != progress:
                progress, deadline = now, time.monotonic() + patience_s
            if time.monotonic() > deadline or (delivery.failure and sender is None):
                return delivery.failure or (sender.refused if sender else "") or "the broker does not answer"
    except CimlError as error:
        return str(error)
    return ""
