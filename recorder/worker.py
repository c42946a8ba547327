"""The recording process beside the command: it samples and sends. Its failure never affects the command."""

from __future__ import annotations

import os
import select
import signal
import time

from ciml.errors import CimlError
from ciml.recorder.command import EVERY_SIGNAL, close_descriptors
from ciml.recorder.producer import Sender
from ciml.recorder.sampler import Recorder, find_dool
from ciml.recorder.settings import Settings, report
from ciml.recorder.spool.delivery import Delivery
from ciml.recorder.spool.flush import Leftovers
from ciml.recorder.spool.recording import End, Recording, seal_recording, secrets_of

_INTERVAL_S = 1.0


def fork_worker(recording: Recording, settings: Settings) -> tuple[int, int]:
    """Start the worker, in its own session.

    Returns:
      Its pid, and the pipe that it listens to. A closed pipe means that the command has ended, or that this process was
      killed; `Recording.write_end` distinguishes the two.
    """
    reading, writing = os.pipe()
    pid = os.fork()
    if pid:
        os.close(reading)
        return pid, writing
    code = 1
    try:
        os.setsid()
        signal.pthread_sigmask(signal.SIG_UNBLOCK, EVERY_SIGNAL - {signal.SIGHUP})
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        close_descriptors(2, reading, *recording.descriptors)
        null = os.open(os.devnull, os.O_RDWR)
        os.dup2(null, 0)
        os.dup2(null, 1)
        os.environ["OPENBLAS_NUM_THREADS"] = "1"  # numpy starts threads that are not needed here
        code = _work(recording, settings, reading)
    except BaseException as error:  # noqa: BLE001  # nothing may be unwound in a forked child
        report(f"the recorder failed ({type(error).__name__}: {error}); the command continues")
    finally:
        os._exit(code)


def _work(recording: Recording, settings: Settings, command: int) -> int:
    recorder_us = time.time_ns() // 1000
    dool = find_dool()
    recording.add_start(recorder_us)
    recorder = Recorder(recording.log, dool)
    report(f"sampling with {recorder.what}; run {recording.plan.mention.run_id}")
    sender = Sender(settings.kafka) if settings.kafka else None
    delivery = Delivery(recording, sender)
    older = Leftovers(recording, settings, sender)
    beat = time.monotonic()
    broken = "" if recording.plan.has_destination else "no destination: neither --kafka nor --log-dir"
    while True:
        recorder.tick()
        if not broken:
            broken = _step(delivery)
        older.step()
        if sender:
            sender.poll()
        now = time.monotonic()
        beat = max(beat + _INTERVAL_S, now)  # missed samples are skipped
        if select.select([command], [], [], beat - now)[0]:
            break
    recorder.end()
    end = recording.end()
    if end is None:  # only this process is left
        end = End(time.time_ns() // 1000, "ABORTED", {"recorder": "killed"})
        os.dup2(0, 2)
    delivery.finish(end)
    deadline = time.monotonic() + settings.flush_s
    arrived = False
    while not broken and not (arrived := delivery.step()) and time.monotonic() < deadline:
        if sender:
            sender.poll(0.05)
        else:
            time.sleep(0.05)
    if arrived:
        if problem := recording.remove():
            report(f"everything was sent, but {problem}")
        return 0
    why = broken or delivery.failure or (sender.connection_error if sender else "") or "the flush time is over"
    report(f"not everything was sent ({why}): {keep(recording, settings)}")
    return 0


def keep(recording: Recording, settings: Settings) -> str:
    """Seal an unsent recording, so that the next recorder may send it. Return a note on where it is."""
    note = f"kept in {recording.folder.path} for the next ciml record, or ciml record --send"
    if settings.kafka and settings.kafka.extra:
        note += " with the same --kafka and its properties, which are not stored"
    if not recording.plan.has_destination:
        note = f"kept in {recording.folder.path}; send it by ciml record --send --log-dir FOLDER, or --kafka HOST:PORT"
    try:
        seal_recording(recording, secrets_of(settings.kafka, recording.plan.log_dir))
    except (CimlError, OSError) as error:
        note += f"; not sealed ({error})"
    return note


def _step(delivery: Delivery) -> str:
    try:
        delivery.step()
    except CimlError as error:
        return str(error)
    return ""
