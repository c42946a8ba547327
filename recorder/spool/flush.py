"""``ciml record --send``: send the recordings that earlier recorders left."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import lru_cache

from ciml.errors import CimlError, EngineError
from ciml.kafka.options import KafkaOptions
from ciml.recorder.console import report
from ciml.recorder.producer import Sender
from ciml.recorder.settings import Settings
from ciml.recorder.spool.folder import open_private
from ciml.recorder.spool.leftovers import FACTS, by_command, deliver, is_unsealed
from ciml.recorder.spool.recording import Destination, Recording, waiting


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
    failed = sent = kept = 0
    names, more = waiting(spool)
    for name in names:
        try:
            recording = Recording.take(spool, name)
        except CimlError as error:
            failed += 1
            report(str(error))
            continue
        if recording is None:
            continue
        run_id = recording.plan.mention.run_id
        why = _send(recording, sender_of, settings, destination)
        if why:
            failed += 1
            recording.release()
            report(f"{run_id} not sent: {why}")
        else:
            sent += 1
            stays = recording.remove()
            kept += bool(stays)
            lost = f" without {', '.join(FACTS)} (not sealed)" if is_unsealed(recording.plan) else ""
            report(f"{run_id} sent{lost}" + (f", but {stays}" if stays else ""))
    if more:
        report(f"{settings.spool} holds more than {len(names)} entries; run ciml record --send again for the others")
    if failed:
        raise EngineError(f"{failed} recordings not sent, kept in {settings.spool}; {sent} sent")
    if kept:
        raise EngineError(f"{sent} recordings sent, but {kept} of them cannot be removed from {settings.spool}")
    report(f"{sent} recordings sent")


def _send(
    recording: Recording, sender_of: Callable[[KafkaOptions], Sender], settings: Settings, destination: Destination
) -> str:
    """Send one recording while it makes progress. Return why it could not be sent, or ""."""
    progress = -1
    try:
        recording.plan, kafka = by_command(recording, settings, destination)
        sender = sender_of(kafka) if kafka else None
        delivery = deliver(recording, sender)
        deadline = time.monotonic() + settings.flush_s
        while not delivery.step():
            if sender is not None:
                sender.poll(0.05)
            if (now := delivery.progress) != progress:
                progress, deadline = now, time.monotonic() + settings.flush_s
            if time.monotonic() > deadline or (delivery.failure and sender is None):
                silent = f"Kafka at {recording.plan.kafka} does not answer"
                why = delivery.failure or (sender.connection_error if sender else "") or silent
                return why if kafka == settings.kafka else f"{why}; --kafka HOST:PORT names another broker"
    except CimlError as error:
        return str(error)
    except OSError as error:
        return f"{recording.folder.path}: {error.strerror or error}"
    return ""
