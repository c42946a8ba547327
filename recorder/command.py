"""The process that runs the recorded command: it starts it as ``env`` would, waits for it, and exits as it did.

All is as for the bare command: file descriptors, environment, signal mask, process group and terminal. The child undoes
the changes that Python makes at its start. The process may be stopped and continued with its group.

A signal that a terminal or a CI system sends to the process group has already reached the command: passing it on would
send it twice. A signal does not show whether it was sent to the group. So a watcher process in the group blocks every
signal, and one that is pending there too was sent to the group. The watcher also notices that the recorder was killed.
"""

from __future__ import annotations

import contextlib
import errno
import os
import resource
import signal
import socket
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import NoReturn

NOT_EXECUTABLE = 126
NOT_FOUND = 127
#: All signals that can be blocked. They wait for `signal.sigwaitinfo`, so no handler ever runs.
EVERY_SIGNAL = frozenset(signal.valid_signals()) - {signal.SIGKILL, signal.SIGSTOP}
Mask = frozenset[int]
#: Signals by which a CI system or a user ends a job.
CANCEL = frozenset({signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT})
#: Signals by which a terminal stops a process group.
_TERMINAL_STOPS = frozenset({signal.SIGTSTP, signal.SIGTTIN, signal.SIGTTOU})
#: Signals that a terminal sends, and then always to its whole foreground group.
_OF_TERMINAL = _TERMINAL_STOPS | {signal.SIGINT, signal.SIGQUIT, signal.SIGWINCH}
_SI_KERNEL = 0x80  # `si_code` of a signal that the kernel sent
_KILL_AFTER_S = 10.0
_ANSWER_S = 0.5  # a stopped watcher must not stop the recorder


class CannotStartError(Exception):
    """The command could not be started; ``exit_code`` is the one that a shell gives then."""

    def __init__(self, number: int) -> None:
        super().__init__(os.strerror(number))
        self.exit_code = NOT_FOUND if number in (errno.ENOENT, errno.ENOTDIR) else NOT_EXECUTABLE


def block_signals() -> tuple[Mask, bool]:
    """Block every signal of this thread, and keep ended children until they are waited for.

    Returns:
      The previous mask, and whether SIGCHLD was ignored: `start` restores both for the command.
    """
    mask = frozenset(int(number) for number in signal.pthread_sigmask(signal.SIG_BLOCK, EVERY_SIGNAL))
    ignored = signal.getsignal(signal.SIGCHLD) == signal.SIG_IGN
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    return mask, ignored


def start(
    argv: Sequence[str], mask: Mask, sigchld_ignored: bool, descriptors: Mapping[int, int] = MappingProxyType({})
) -> int:
    """Start the command in this process's group; return its pid once it runs.

    Args:
      argv: the command and its arguments.
      mask, sigchld_ignored: those of `block_signals`.
      descriptors: open descriptors that the command gets in the place of its own.

    Raises:
      CannotStartError: there is no such program, or it cannot be executed.
    """
    reading, writing = os.pipe()  # closed by the exec
    pending = CANCEL & signal.sigpending()
    pid = os.fork()
    if pid == 0:
        try:
            for number in pending:  # sent before there was a command, perhaps to the whole group
                os.kill(os.getpid(), number)
            for ignored in (signal.SIGPIPE, signal.SIGXFSZ):  # ignored by Python
                signal.signal(ignored, signal.SIG_DFL)
            if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # it would take a pending signal
                signal.signal(signal.SIGINT, signal.SIG_DFL)
            if sigchld_ignored:
                signal.signal(signal.SIGCHLD, signal.SIG_IGN)
            for number, descriptor in descriptors.items():
                os.dup2(descriptor, number)
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
            number = _execute([os.fsencode(word) for word in argv], own_environment())
        except BaseException:  # noqa: BLE001  # nothing may be unwound in a forked child
            number = errno.EIO
        os.write(writing, str(number).encode())
        os._exit(NOT_EXECUTABLE)
    os.close(writing)
    with open(reading, "rb") as pipe:
        errno_text = pipe.read()
    if errno_text:
        os.waitpid(pid, 0)
        raise CannotStartError(int(errno_text))
    return pid


def own_environment() -> dict[bytes, bytes]:
    """Return the environment that this process was started with.

    In the C locale, Python adds LC_CTYPE to `os.environ` (PEP 538).
    """
    try:
        with open("/proc/self/environ", "rb") as file:
            pairs = [entry.partition(b"=") for entry in file.read().split(b"\0")]
    except OSError:
        return dict(os.environb)
    return {name: value for name, sign, value in pairs if name and sign}


def _execute(argv: list[bytes], environment: Mapping[bytes, bytes]) -> int:
    """Execute as execvp(3): search the PATH, and use sh for a file without an interpreter. Return the error, if any."""
    name = argv[0]
    path = environment.get(b"PATH", os.fsencode(os.defpath))
    files = [name] if b"/" in name else [os.path.join(folder, name) for folder in path.split(b":")]
    if not name:
        return errno.ENOENT
    failure = errno.ENOENT
    for file in files:
        try:
            os.execve(file, argv, environment)  # noqa: S606  # the command is the user's
        except OSError as error:
            if error.errno == errno.ENOEXEC:
                return _execute([b"/bin/sh", file, *argv[1:]], environment)
            if error.errno == errno.EACCES:
                failure = errno.EACCES  # another folder may have an executable one
            elif error.errno not in (errno.ENOENT, errno.ENOTDIR):
                return error.errno or errno.EIO
    return failure


@dataclass(frozen=True)
class Ending:
    """The end of the command.

    Attributes:
      status: wait status of wait(2).
      pid: of the command; 0 if it could not be started.
      cancelled: whether a signal that ends jobs arrived before, or soon after.
      timed_out: whether it was ended at its time limit.
    """

    status: int
    pid: int = 0
    cancelled: bool = False
    timed_out: bool = False

    @property
    def result(self) -> str:
        """SUCCESS, FAILURE, TIMED_OUT or ABORTED."""
        if self.status == 0:
            return "SUCCESS"
        return "TIMED_OUT" if self.timed_out else "ABORTED" if self.cancelled else "FAILURE"


class Supervisor:
    """Waits for the command to end. Passes on the signals sent to this process, which blocks all signals.

    Args:
      command: its pid.
      watcher: reports the signals that the command has already received.
      timeout_s: time limit, s; None for none. At the limit the command gets SIGTERM, and SIGKILL ten seconds later.
      on_child: called with the pid and the wait status of any other child that ended.
      on_resize: called when the size of a terminal has changed.
    """

    def __init__(
        self,
        command: int,
        watcher: SignalWatcher | None,
        timeout_s: float | None,
        on_child: Callable[[int, int], None],
        on_resize: Callable[[], None],
    ) -> None:
        self._command = command
        self._watcher = watcher
        self._deadline_s = None if timeout_s is None else time.monotonic() + timeout_s
        self._on_child = on_child
        self._on_resize = on_resize
        self._is_cancelled = False  # a signal that ends jobs has arrived
        self._is_timed_out = False  # the command got SIGTERM at its time limit
        self._is_stopped = False  # the command is stopped
        #: Signals that were sent to the group, and that this process has not received yet.
        self._to_group: set[int] = set()
        #: Terminal stops that were sent to the group since it last continued.
        self._group_stops: set[int] = set()

    def wait(self) -> Ending:
        """Wait for the command to end."""
        while True:
            ending = self._reap()
            if ending is not None:
                return ending
            # Only with the group: a process that stops the command alone also continues it alone. The stop of the
            # command and the signal to the group may be noticed in either order.
            if self._is_stopped and self._group_stops:
                self._stop_with_group()
            info = self._next_signal()
            if info is None:
                self._signal_late_command()
            elif info.si_signo != signal.SIGCHLD:  # `_reap` handles the children
                self._handle(info)

    def _reap(self) -> Ending | None:
        """Handle children that have changed. Return the end of the command, once it has ended."""
        ending = None
        for pid, status in reap_children(os.WUNTRACED | os.WCONTINUED):
            is_over = os.WIFEXITED(status) or os.WIFSIGNALED(status)
            if pid == self._command and is_over:
                ending = Ending(status, pid, self._is_cancelled, self._is_timed_out)
            elif pid == self._command:
                self._is_stopped = os.WIFSTOPPED(status)
                self._note_group_signals()
            elif is_over:
                self._on_child(pid, status)
        return ending

    def _stop_with_group(self) -> None:
        """Stop this process as its group was stopped, until it is continued."""
        os.kill(os.getpid(), signal.SIGSTOP)
        self._to_group -= _TERMINAL_STOPS  # SIGCONT discards pending stop signals
        self._group_stops.clear()
        self._is_stopped = False

    def _next_signal(self) -> signal.struct_siginfo | None:
        """Wait for a signal to this process. Return None at the time limit of the command."""
        if self._deadline_s is None:
            return signal.sigwaitinfo(EVERY_SIGNAL)
        return signal.sigtimedwait(EVERY_SIGNAL, max(0.0, self._deadline_s - time.monotonic()))

    def _signal_late_command(self) -> None:
        """Send SIGTERM at the first time limit, and SIGKILL at the next; SIGCONT lets a stopped command receive it."""
        _send(self._command, signal.SIGKILL if self._is_timed_out else signal.SIGTERM)
        _send(self._command, signal.SIGCONT)
        self._deadline_s = time.monotonic() + _KILL_AFTER_S
        self._is_timed_out = True

    def _handle(self, info: signal.struct_siginfo) -> None:
        """Pass a signal on, unless the command has received it with its group."""
        number = info.si_signo
        if is_cancel(info, self._command):
            self._is_cancelled = True
        if number in _OF_TERMINAL and info.si_code == _SI_KERNEL:
            self._to_group.add(number)  # also where the watcher was not running yet
        self._note_group_signals()
        if number == signal.SIGCONT:
            self._group_stops.clear()
        if number == signal.SIGWINCH:
            self._on_resize()
        if number in self._to_group:
            self._to_group.discard(number)
        else:
            _send(self._command, number)

    def _note_group_signals(self) -> None:
        if self._watcher is not None:
            self._to_group |= self._watcher.take_signals()
        self._group_stops |= self._to_group & _TERMINAL_STOPS


def is_cancel(info: signal.struct_siginfo, command: int) -> bool:
    """Return whether a signal ends the job: from outside, not by the command itself, whose pid is given."""
    return info.si_signo in CANCEL and info.si_pid != command


def reap_children(options: int = 0) -> list[tuple[int, int]]:
    """Reap the children that have ended, without blocking; as process 1 of a container, orphans too.

    Args:
      options: of waitpid(2), to report children that were stopped or continued as well.

    Returns:
      (pid, wait status) of each child.
    """
    children: list[tuple[int, int]] = []
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG | options)
        except ChildProcessError:
            return children
        if pid == 0:
            return children
        children.append((pid, status))


def _send(pid: int, number: int) -> None:
    with contextlib.suppress(PermissionError):  # it runs as another user now, and cannot be signalled
        os.kill(pid, number)  # the process was not waited for yet, so no other one has this pid


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

    def take_signals(self) -> frozenset[int]:
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
        recorder.send(bytes([0, *take_pending()]))  # an empty message would mean the end
    with contextlib.suppress(ProcessLookupError):
        signal.pidfd_send_signal(process, signal.SIGKILL)
    os._exit(0)


def take_pending() -> Iterator[int]:
    """Take the pending signals of this process, which blocks them; yield their numbers."""
    while (info := signal.sigtimedwait(EVERY_SIGNAL, 0)) is not None:
        yield info.si_signo


def end_as(status: int) -> NoReturn:
    """End this process with a wait status: with the same code, or by the same signal.

    A signal that does not end this process (as process 1 of a container) becomes the exit code 128 + n.
    """
    if os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        hard_limit = resource.getrlimit(resource.RLIMIT_CORE)[1]
        # The command's core dump is enough: core(5).
        resource.setrlimit(resource.RLIMIT_CORE, (min(1, hard_limit), hard_limit))
        with contextlib.suppress(OSError, ValueError):  # SIGKILL has no handler, and the C library reserves two
            signal.signal(number, signal.SIG_DFL)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {number})
        os.kill(os.getpid(), number)
        os._exit(128 + number)
    os._exit(os.waitstatus_to_exitcode(status))


def close_descriptors(*descriptors: int) -> None:
    """Close all inherited descriptors except ``descriptors``, so that no pipe of another process is kept open."""
    low = 0
    for descriptor in (*sorted(descriptors), os.sysconf("SC_OPEN_MAX")):
        os.closerange(low, descriptor)
        low = descriptor + 1
