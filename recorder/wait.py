"""Wait for the command: its signals, stops and end, and the end of the recorder beside it."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass

from ciml.recorder.command import EVERY_SIGNAL
from ciml.recorder.signal_watcher import SignalWatcher

#: Signals by which a CI system or a user ends a job.
_CANCEL = frozenset({signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT})
#: Signals by which a terminal stops a process group.
_TERMINAL_STOPS = frozenset({signal.SIGTSTP, signal.SIGTTIN, signal.SIGTTOU})
#: Signals that a terminal sends, and then always to its whole foreground group.
_OF_TERMINAL = _TERMINAL_STOPS | {signal.SIGINT, signal.SIGQUIT, signal.SIGWINCH}
_SI_KERNEL = 0x80
_KILL_AFTER_S = 10.0


@dataclass(frozen=True, slots=True)
class Ending:
    """The end of the command.

    Attributes:
      status: wait status, as of wait(2).
      cancelled: a signal that ends jobs arrived before.
      timed_out: it was ended at its time limit.
    """

    status: int
    cancelled: bool = False
    timed_out: bool = False

    @property
    def result(self) -> str:
        """SUCCESS, FAILURE, TIMED_OUT or ABORTED."""
        if self.status == 0:
            return "SUCCESS"
        return "TIMED_OUT" if self.timed_out else "ABORTED" if self.cancelled else "FAILURE"


def supervise(
    command: int, watcher: SignalWatcher | None, timeout_s: float | None, on_child: Callable[[int], None]
) -> Ending:
    """Wait for the end of the command, and pass on the signals sent to this process, which blocks all signals.

    Args:
      command: its pid.
      watcher: reports the signals that the command has already received.
      timeout_s: time limit, s: the command gets SIGTERM then, and SIGKILL ten seconds later.
      on_child: called with the pid of any other child that ended.
    """
    deadline = None if timeout_s is None else time.monotonic() + timeout_s
    cancelled = timed_out = stopped = False
    to_group: set[int] = set()  # sent to the group, but not yet received by this process
    stops: set[int] = set()  # terminal stops of the group since it last continued
    while True:
        for pid, status in ended_children(os.WUNTRACED | os.WCONTINUED):
            is_over = os.WIFEXITED(status) or os.WIFSIGNALED(status)
            if pid != command:
                if is_over:
                    on_child(pid)
            elif is_over:
                return Ending(status, cancelled, timed_out)
            else:
                stopped = os.WIFSTOPPED(status)
                to_group |= watcher.seen() if watcher else frozenset()
                stops |= to_group & _TERMINAL_STOPS
        # Only with the group: a process that stops the command alone also continues it alone. Whether the stop of the
        # command or the signal to the group is seen first is a matter of timing.
        if stopped and stops:
            os.kill(os.getpid(), signal.SIGSTOP)
            to_group -= _TERMINAL_STOPS  # SIGCONT discards pending stop signals
            stops.clear()
            stopped = False
        if deadline is None:
            info = signal.sigwaitinfo(EVERY_SIGNAL)
        else:
            waited = signal.sigtimedwait(EVERY_SIGNAL, max(0.0, deadline - time.monotonic()))
            if waited is None:
                _send(command, signal.SIGKILL if timed_out else signal.SIGTERM)
                _send(command, signal.SIGCONT)
                deadline = time.monotonic() + _KILL_AFTER_S
                timed_out = True
                continue
            info = waited
        number = info.si_signo
        if number == signal.SIGCHLD:
            continue
        cancelled |= number in _CANCEL and info.si_pid != command
        to_group |= watcher.seen() if watcher else frozenset()
        if number in _OF_TERMINAL and info.si_code == _SI_KERNEL:
            to_group.add(number)  # also where the watcher was not running yet
        stops |= to_group & _TERMINAL_STOPS
        if number == signal.SIGCONT:
            stops.clear()
        if number in to_group:
            to_group.discard(number)
        else:
            _send(command, number)


def ended_children(options: int = 0) -> list[tuple[int, int]]:
    """Return (pid, status) of each child that changed; as process 1 of a container, orphans too."""
    found: list[tuple[int, int]] = []
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG | options)
        except ChildProcessError:
            return found
        if pid == 0:
            return found
        found.append((pid, status))


def _send(pid: int, number: int) -> None:
    with contextlib.suppress(PermissionError):  # it runs as another user now, and cannot be signalled
        os.kill(pid, number)  # not reaped yet, so the pid is still its own
