"""Record a command: the part of ``ciml record`` between its options and its exit.

The process that runs the command forks a worker, which samples and sends. A failure of the worker never affects the
command.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple, NoReturn

from ciml.errors import CimlError
from ciml.recorder import Settings, command, report
from ciml.recorder.command import (
    CANCEL,
    EVERY_SIGNAL,
    Ending,
    SignalWatcher,
    Supervisor,
    close_descriptors,
    is_cancel,
    reap_children,
    take_pending,
)
from ciml.recorder.output import Output
from ciml.recorder.sampler import Recorder, find_dool
from ciml.recorder.spool.delivery import Delivery, Sender
from ciml.recorder.spool.flush import Leftovers
from ciml.recorder.spool.recording import End, Plan, Recording
from ciml.recorder.spool.seals import seal_recording, secrets_of

#: Without a place for the log, the finished event has no log_url, which ingest requires.
_NO_LOG = (
    "no place for the log, so ingest cannot fetch it and makes the run a dead letter; add --log-dir FOLDER|s3://PREFIX "
    "or set CIML_LOG_DIR"
)
_INTERVAL_S = 1.0
_MAX_RESTARTS = 3
_STABLE_S = 60.0  # a worker that ran for this time resets the count of restarts
_OUTPUT_PAUSE_S = 0.005
#: How long a failed command waits for a signal that ends the job: a CI system may signal its processes one by one. If
#: it reads the environment of all processes in between, 0.02 to 0.04 s pass (two cores at a load of 17).
_LATE_CANCEL_S = 0.3
_GRACE_S = 2.0  # after the flush time, until a worker that hangs is killed


class _Worker(NamedTuple):
    """A worker, as seen by the process that runs the command.

    Attributes:
      pid: its process id.
      pipe: has a byte when the command has ended. It is closed when the end is written, or when this process was
        killed. `Recording.write_end` distinguishes the two.
    """

    pid: int
    pipe: int


def record(
    argv: Sequence[str],
    plan: Plan,
    settings: Settings,
    timeout_s: float | None = None,
    *,
    with_output: bool = False,
) -> NoReturn:
    """Run a command with a recorder next to it, and exit as the command did.

    Args:
      argv: the command and its arguments.
      plan: the facts of the run, and its destination.
      settings: settings of the recorder.
      timeout_s: time limit of the command, s; None for none.
      with_output: whether to record what the command prints.
    """
    if plan.kafka and not plan.log_dir:
        report(_NO_LOG)
    mask, sigchld_ignored = command.block_signals()
    sidecar = _Sidecar(plan, settings, with_output=with_output)
    try:
        pid = command.start(argv, mask, sigchld_ignored, sidecar.descriptors)
    except command.CannotStartError as error:
        sidecar.start()
        report(f"{argv[0]}: {error}")
        sidecar.finish(Ending(error.exit_code << 8))
        os._exit(error.exit_code)
    sidecar.start()
    watcher = None
    with contextlib.suppress(OSError):  # cannot fork: then the command receives signals to the group twice
        watcher = SignalWatcher(pid)
    ending = Supervisor(pid, watcher, timeout_s, sidecar.handle_child_end, sidecar.resize).wait()
    if watcher is not None:
        watcher.end()
    sidecar.finish(ending)
    command.end_as(ending.status)


class _Sidecar:
    """The recorder, as seen by the process that runs the command. No method raises."""

    def __init__(self, plan: Plan, settings: Settings, *, with_output: bool) -> None:
        self._settings = settings
        self._recording: Recording | None = None
        self._worker: _Worker | None = None  # None without a recording, and after its end
        self._restarts = 0  # without those before a worker that ran for `_STABLE_S`
        self._started_s = 0.0  # when the last worker was started
        self._output = Output()
        try:
            self._recording = Recording.create(settings.spool, plan)
        except CimlError as error:
            report(f"not recording: {error}")
        except Exception as error:  # noqa: BLE001  # after any failure the command must still run
            report(f"not recording: {settings.spool}: {getattr(error, 'strerror', None) or error}")
        if with_output and self._recording is not None:
            try:
                self._output = Output(self._recording.create_output())
            except Exception as error:  # noqa: BLE001  # see above
                report(f"not recording the output: {getattr(error, 'strerror', None) or error}")
                self._recording.remove_output()

    @property
    def descriptors(self) -> Mapping[int, int]:
        """The descriptors that the command gets in the place of its own."""
        return self._output.descriptors

    def resize(self) -> None:
        """Handle a change of a terminal's size."""
        self._output.resize()

    def start(self) -> None:
        """Start the copiers of the output, and the worker."""
        self._output.start()
        self._start_worker()

    def _start_worker(self) -> None:
        if self._recording is None:
            return
        self._started_s = time.monotonic()
        try:
            self._worker = _fork_worker(self._recording, self._settings)
        except OSError as error:
            report(f"not recording: {error.strerror}")

    def handle_child_end(self, pid: int, status: int) -> None:
        """Handle the end of a child: restart the worker if it ended, and a copier of the output if it was killed."""
        self._output.handle_child_end(pid, status)
        if self._worker is None or pid != self._worker.pid:
            return
        os.close(self._worker.pipe)
        self._worker = None
        if time.monotonic() - self._started_s > _STABLE_S:
            self._restarts = 0
        if self._restarts < _MAX_RESTARTS:
            self._restarts += 1
            report("the recorder exited; restarting it")
            self._start_worker()
        else:
            report("the recorder exited too often; the command continues without it")

    def finish(self, ending: Ending) -> None:
        """Write down the command's end, and give the worker its flush time; a signal that ends jobs shortens it."""
        if self._recording is None:
            return
        end_us = time.time_ns() // 1000
        if self._worker is not None:
            with contextlib.suppress(OSError):  # it was killed
                os.write(self._worker.pipe, b"e")
        if self._is_cancelled_late(ending):
            ending = replace(ending, cancelled=True)
        try:
            self._recording.write_end(_end_of(ending, end_us))
        except OSError as error:
            report(f"cannot write the command's end: {error.strerror}")
        if self._worker is None:
            report(f"nothing sent: {_keep(self._recording, self._settings)}")
            return
        os.close(self._worker.pipe)
        deadline = time.monotonic() + self._settings.flush_s + _GRACE_S
        while not any(pid == self._worker.pid for pid, _ in reap_children()):
            info = signal.sigtimedwait(EVERY_SIGNAL, max(0.0, deadline - time.monotonic()))
            if info is None or info.si_signo in CANCEL:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(self._worker.pid, signal.SIGKILL)
                os.waitpid(self._worker.pid, 0)
                report(f"not everything was sent: {_keep(self._recording, self._settings)}")
                return

    def _is_cancelled_late(self, ending: Ending) -> bool:
        """Return whether a failed command is followed by a signal that ends the job. Pass on what it printed meanwhile.

        Such a signal ends this, also later, while the output waits for its reader.
        """
        late_s = time.monotonic() + (_LATE_CANCEL_S if ending.result == "FAILURE" else 0.0)
        self._output.mark_end()
        is_cancelled = False
        while not is_cancelled and (time.monotonic() < late_s or not self._output.is_passed_on()):
            info = signal.sigtimedwait(EVERY_SIGNAL, _OUTPUT_PAUSE_S)
            is_cancelled = info is not None and is_cancel(info, ending.pid)
            for pid, status in reap_children():
                self.handle_child_end(pid, status)
        self._output.close()
        return is_cancelled and time.monotonic() < late_s


def _end_of(ending: Ending, end_us: int) -> End:
    labels = {}
    if os.WIFSIGNALED(ending.status):
        number = os.WTERMSIG(ending.status)
        try:
            labels["signal"] = signal.Signals(number).name
        except ValueError:
            labels["signal"] = str(number)
    else:
        labels["exit_code"] = str(os.waitstatus_to_exitcode(ending.status))
    return End(end_us, ending.result, labels)


def _fork_worker(recording: Recording, settings: Settings) -> _Worker:
    """Start the worker, in its own session. Raises `OSError`."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid:
        os.close(reading)
        return _Worker(pid, writing)
    code = 1
    try:
        os.setsid()
        for _ in take_pending():
            pass  # signals to the command's group
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, EVERY_SIGNAL - {signal.SIGHUP})
        close_descriptors(2, reading, *recording.descriptors)
        null = os.open(os.devnull, os.O_RDWR)
        os.dup2(null, 0)
        os.dup2(null, 1)
        os.environ["OPENBLAS_NUM_THREADS"] = "1"  # numpy starts threads that are not needed here
        _work(recording, settings, reading)
        code = 0
    except BaseException as error:  # noqa: BLE001  # nothing may be unwound in a forked child
        report(f"the recorder failed ({type(error).__name__}: {error}); the command continues")
    finally:
        os._exit(code)


def _work(recording: Recording, settings: Settings, pipe: int) -> None:
    """Sample and send until the command has ended, then send the rest within the flush time."""
    recorder_us = time.time_ns() // 1000
    dool = find_dool()
    recording.add_start(recorder_us)
    recorder = Recorder(recording.log, dool)
    report(f"sampling with {recorder.source}; run {recording.plan.mention.run_id}")
    sender = Sender(settings.kafka) if settings.kafka else None
    delivery = Delivery(recording, sender)
    leftovers = Leftovers(recording, settings, sender)
    leftovers.open()
    failure = _sample_until_end(recorder, delivery, leftovers, sender, pipe)
    recorder.end()
    while os.read(pipe, 1):
        pass  # until the end is written
    end = recording.end()
    if end is None:  # the process that runs the command was killed, and wrote none
        end = End(time.time_ns() // 1000, "ABORTED", {"recorder": "killed"})
        os.dup2(0, 2)  # nothing is printed after its end
    delivery.finish(end)
    if not failure and _flush(delivery, sender, settings.flush_s):
        if problem := recording.remove():
            report(f"everything was sent, but {problem}")
        return
    connection_error = sender.connection_error if sender else ""
    reason = failure or delivery.failure or connection_error or "the flush time is over"
    report(f"not everything was sent ({reason}): {_keep(recording, settings)}")


def _sample_until_end(
    recorder: Recorder, delivery: Delivery, leftovers: Leftovers, sender: Sender | None, pipe: int
) -> str:
    """Take a sample every second, and send between samples, until the command has ended.

    Returns:
      Why the recording can never be sent; "" if it can.
    """
    failure = "" if delivery.recording.plan.has_destination else "no destination: neither --kafka nor --log-dir"
    waiting = select.poll()
    waiting.register(pipe, select.POLLIN)
    due_s = time.monotonic()
    while True:
        recorder.tick()
        if not failure:
            try:
                delivery.step()
            except CimlError as error:
                failure = str(error)
        leftovers.step()
        if sender:
            sender.poll()
        now_s = time.monotonic()
        due_s = max(due_s + _INTERVAL_S, now_s)  # missed samples are skipped
        if waiting.poll((due_s - now_s) * 1000):
            return failure


def _flush(delivery: Delivery, sender: Sender | None, flush_s: float) -> bool:
    """Send the rest. Return whether everything has arrived within the time."""
    deadline = time.monotonic() + flush_s
    while not delivery.step():
        if time.monotonic() >= deadline:
            return False
        if sender:
            sender.poll(0.05)
        else:
            time.sleep(0.05)
    return True


def _keep(recording: Recording, settings: Settings) -> str:
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
