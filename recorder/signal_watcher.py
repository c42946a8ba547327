"""A watcher process: it records signals to the whole process group, and detects that the recorder was killed.

A signal that a terminal or a CI system sends to the group has already reached the command, so passing it on would send
it twice. A signal does not show whether it was sent to the group. The watcher is in the group and blocks every signal:
a signal that is pending there too was sent to the group.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
from collections.abc import Iterable
from typing import NoReturn

from ciml.recorder.command import EVERY_SIGNAL

_ANSWER_S = 0.5  # a stopped watcher must not stop the recorder


def close_descriptors(*kept: int) -> None:
    """Close all inherited descriptors except ``kept``, so that no reader waits for the end of a pipe."""
    low = 0
    for one in (*sorted(kept), os.sysconf("SC_OPEN_MAX")):
        os.closerange(low, one)
        low = one + 1


class SignalWatcher:
    """The watcher of a command, forked from the recorder; it blocks all signals.

    It survives a SIGKILL of the recorder, and then kills the command: as a SIGKILL of the bare command would have.
    """

    def __init__(self, command: int) -> None:
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.pid = os.fork()
        if self.pid == 0:
            try:
                self._socket.close()
                _watch(theirs, command)
            finally:
                os._exit(1)
        theirs.close()
        self._socket.settimeout(_ANSWER_S)

    def seen(self) -> frozenset[int]:
        """Return the signals sent to the group since the last call."""
        try:
            self._socket.send(b"?")
            return frozenset(self._socket.recv(256))
        except OSError:
            return frozenset()

    def end(self) -> None:
        """Stop the watcher. The command must have ended."""
        self._socket.close()
        with contextlib.suppress(ChildProcessError):
            os.waitpid(self.pid, 0)


def _watch(recorder: socket.socket, command: int) -> NoReturn:
    process = os.pidfd_open(command)  # pids are reused
    close_descriptors(recorder.fileno(), process)
    while recorder.recv(1):
        recorder.send(bytes([0, *_pending()]))  # an empty message would mean the end
    with contextlib.suppress(ProcessLookupError):
        signal.pidfd_send_signal(process, signal.SIGKILL)
    os._exit(0)


def _pending() -> Iterable[int]:
    while (info := signal.sigtimedwait(EVERY_SIGNAL, 0)) is not None:
        yield info.si_signo
