"""The process beside the command: it records, and sends what it can. Whatever becomes of it, the command goes on."""

from __future__ import annotations

import os
import select
import signal
import time
from dataclasses import dataclass
from pathlib import Path

from ciml.errors import CimlError
from cli.record.command import EVERY_SIGNAL
from cli.record.delivery import Delivery
from cli.record.kafka import Sender
from cli.record.recorder import Recorder, find_dool
from cli.record.say import say
from cli.record.spool import End, Recording, leftovers
from cli.record.witness import close_descriptors
from pipelines.kafka_options import KafkaOptions

_INTERVAL_S = 1.0
_MOST_SPOOL_BYTES = 1 << 30


@dataclass(frozen=True, slots=True)
class Settings:
    """What the worker is told.

    Attributes:
      spool: where recordings are.
      kafka: how to reach the broker; None for none.
      flush_s: how long to send after the command's end.
      bring: whether to send recordings that earlier ones left behind.
    """

    spool: Path
    kafka: KafkaOptions | None = None
    flush_s: float = 5.0
    bring: bool = True


def fork_worker(recording: Recording, settings: Settings) -> tuple[int, int]:
    """Starts the worker, in a session of its own.

    Returns:
      Its pid, and the pipe that it listens to: closed, it says that the command has ended (or that this process was
      killed, which is told apart by what `Recording.write_end` wrote).
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
        close_descriptors(2, reading, recording.lock)
        null = os.open(os.devnull, os.O_RDWR)
        os.dup2(null, 0)
        os.dup2(null, 1)
        os.environ["OPENBLAS_NUM_THREADS"] = "1"  # numpy starts threads that nobody here needs
        code = _work(recording, settings, reading)
    except BaseException as error:  # noqa: BLE001  # nothing may be unwound in a forked child
        say(f"the recorder fails ({type(error).__name__}: {error}); the command goes on")
    finally:
        os._exit(code)


def _work(recording: Recording, settings: Settings, command: int) -> int:
    recorder_us = time.time_ns() // 1000
    dool = find_dool()
    recording.add_start(recorder_us)
    recorder = Recorder(recording.log, dool)
    say(f"samples by {recorder.what}; run {recording.plan.mention.run_id}")
    sender = Sender(settings.kafka) if settings.kafka else None
    delivery = Delivery(recording, sender)
    older = _Leftovers(settings, sender)
    beat = time.monotonic()
    broken = "" if recording.plan.leads_somewhere else "neither --kafka nor --log-dir says where to"
    while True:
        recorder.tick()
        if not broken:
            broken = _step(delivery)
        older.step()
        if sender:
            sender.poll()
        now = time.monotonic()
        beat = max(beat + _INTERVAL_S, now)  # what was missed is not made up for
        if select.select([command], [], [], beat - now)[0]:
            break
    recorder.end()
    end = recording.end()
    if end is None:  # this process is all that is left
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
        recording.remove()
        return 0
    why = broken or delivery.failure or (sender.refused if sender else "") or "there was no time"
    say(f"not all is sent ({why}): {kept(recording)}")
    return 0


def kept(recording: Recording) -> str:
    """Where a recording is that was not sent, and what will send it."""
    return f"kept in {recording.folder}, for the next ciml record or ciml record --send"


def _step(delivery: Delivery) -> str:
    try:
        delivery.step()
    except CimlError as error:
        return str(error)
    return ""


class _Leftovers:
    """Recordings that earlier ones left, sent one after another, a little each second."""

    def __init__(self, settings: Settings, sender: Sender | None) -> None:
        self._settings, self._sender = settings, sender
        self._waiting = list(leftovers(settings.spool)) if settings.bring else []
        self._current: tuple[Recording, Delivery] | None = None
        _trim(self._waiting)

    def step(self) -> None:
        try:
            self._step()
        except (CimlError, OSError):  # it stays where it is; `ciml record --send` says what is wrong with it
            if self._current is not None:
                self._current[0].release()
            self._current = None

    def _step(self) -> None:
        if self._current is None:
            if not self._waiting:
                return
            recording = Recording.take(self._waiting.pop(0))
            if recording is None:
                return
            address = self._settings.kafka.bootstrap if self._settings.kafka else ""
            if recording.plan.kafka != address or not recording.plan.leads_somewhere:
                recording.release()
                return
            self._current = recording, Delivery(recording, self._sender, end_of(recording))
        recording, delivery = self._current
        if delivery.step():
            recording.remove()
            self._current = None


def end_of(recording: Recording) -> End:
    """How a recording that was left behind ended: killed with its recorder, where nobody wrote it down."""
    end = recording.end()
    if end is not None:
        return end
    last = recording.log if recording.log.exists() else recording.folder
    return End(last.stat().st_mtime_ns // 1000, "ABORTED", {"recorder": "killed"})


def _trim(folders: list[Path]) -> None:
    """Removes the oldest recordings that nobody is recording or sending, until the rest is of a bearable size."""
    sizes = {folder: sum(file.stat().st_size for file in folder.iterdir() if file.is_file()) for folder in folders}
    total = sum(sizes.values())
    for folder in list(folders):
        if total <= _MOST_SPOOL_BYTES:
            return
        try:
            recording = Recording.take(folder)
        except CimlError:
            continue
        if recording is not None:
            recording.remove()
            folders.remove(folder)
            total -= sizes[folder]
            say(f"the spool is full: the oldest recording is given up, run {recording.plan.mention.run_id}")
