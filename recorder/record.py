"""Record a command: the part of ``ciml record`` between its options and its exit."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Sequence
from typing import NoReturn

from ciml.errors import CimlError
from ciml.recorder import command
from ciml.recorder.command import Ending, SignalWatcher, ended_children, supervise
from ciml.recorder.settings import Settings, report
from ciml.recorder.spool.recording import End, Plan, Recording
from ciml.recorder.worker import fork_worker, keep

#: The finished event has no log_url then, which ingest requires.
_NO_LOG = (
    "no place for the log, so ingest cannot fetch it and makes the run a dead letter; add --log-dir FOLDER|s3://PREFIX "
    "or set CIML_LOG_DIR"
)
_RESTARTS = 3
_LIVED_S = 60.0  # a worker that ran for this time resets the count of restarts
_GRACE_S = 2.0  # grace after the flush time, for a worker that hangs


def record(argv: Sequence[str], plan: Plan, settings: Settings, timeout_s: float | None = None) -> NoReturn:
    """Run a command with a recorder beside it, and exit as the command did.

    Args:
      argv: the command and its arguments.
      plan: the facts of the run, and its destination.
      settings: settings of the recorder.
      timeout_s: time limit of the command, s; None for none.
    """
    if plan.kafka and not plan.log_dir:
        report(_NO_LOG)
    mask, sigchld_ignored = command.block_signals()
    sidecar = _Sidecar(plan, settings)
    try:
        pid = command.start(argv, mask, sigchld_ignored)
    except command.CannotStartError as error:
        sidecar.start()
        report(f"{argv[0]}: {error}")
        sidecar.finish(Ending(error.exit_code << 8))
        os._exit(error.exit_code)
    sidecar.start()
    watcher = None
    with contextlib.suppress(OSError):  # cannot fork: then the command receives signals to the group twice
        watcher = SignalWatcher(pid)
    ending = supervise(pid, watcher, timeout_s, sidecar.ended)
    if watcher is not None:
        watcher.end()
    sidecar.finish(ending)
    command.end_as(ending.status)


class _Sidecar:
    """The recorder, as seen by the process that runs the command. No method raises."""

    def __init__(self, plan: Plan, settings: Settings) -> None:
        self._settings = settings
        self._recording: Recording | None = None
        self._worker: tuple[int, int] | None = None
        self._restarts = 0
        self._started_at = 0.0
        try:
            self._recording = Recording.create(settings.spool, plan)
        except CimlError as error:
            report(f"not recording: {error}")
        except Exception as error:  # noqa: BLE001  # after any failure the command must still run
            report(f"not recording: {settings.spool}: {getattr(error, 'strerror', None) or error}")

    def start(self) -> None:
        """Start the worker."""
        if self._recording is None:
            return
        self._started_at = time.monotonic()
        try:
            self._worker = fork_worker(self._recording, self._settings)
        except OSError as error:
            report(f"not recording: {error.strerror}")

    def ended(self, pid: int) -> None:
        """Handle the end of a child: restart the worker if it ended."""
        if self._worker is None or pid != self._worker[0]:
            return
        os.close(self._worker[1])
        self._worker = None
        if time.monotonic() - self._started_at > _LIVED_S:
            self._restarts = 0
        if self._restarts < _RESTARTS:
            self._restarts += 1
            report("the recorder exited; restarting it")
            self.start()
        else:
            report("the recorder exited too often; the command continues without it")

    def finish(self, ending: Ending) -> None:
        """Write down the command's end, and give the worker its flush time; a signal that ends jobs cuts it short."""
        if self._recording is None:
            return
        try:
            self._recording.write_end(_end_of(ending))
        except OSError as error:
            report(f"cannot write the command's end: {error.strerror}")
        if self._worker is None:
            report(f"nothing sent: {keep(self._recording, self._settings)}")
            return
        pid, pipe = self._worker
        os.close(pipe)
        deadline = time.monotonic() + self._settings.flush_s + _GRACE_S
        while not any(child == pid for child, _ in ended_children()):
            info = signal.sigtimedwait(command.EVERY_SIGNAL, max(0.0, deadline - time.monotonic()))
            if info is None or info.si_signo in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
                report(f"not everything was sent: {keep(self._recording, self._settings)}")
                return


def _end_of(ending: Ending) -> End:
    labels = {}
    if os.WIFSIGNALED(ending.status):
        number = os.WTERMSIG(ending.status)
        try:
            labels["signal"] = signal.Signals(number).name
        except ValueError:
            labels["signal"] = str(number)
    else:
        labels["exit_code"] = str(os.waitstatus_to_exitcode(ending.status))
    return End(time.time_ns() // 1000, ending.result, labels)
