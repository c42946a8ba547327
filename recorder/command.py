"""Run the recorded command: start it as ``env`` would, wait for it, and exit as it did.

All is as for the bare command: file descriptors, environment, signal mask, process group and terminal. The child undoes
the changes that Python makes at its start.
"""

from __future__ import annotations

import contextlib
import errno
import os
import resource
import signal
from collections.abc import Mapping, Sequence
from typing import NoReturn

NOT_EXECUTABLE, NOT_FOUND = 126, 127
#: All signals that can be blocked. They wait for `signal.sigwaitinfo`, so no handler ever runs.
EVERY_SIGNAL = frozenset(signal.valid_signals()) - {signal.SIGKILL, signal.SIGSTOP}

Mask = frozenset[int]


class CannotStartError(Exception):
    """The command could not be started; ``exit_code`` is that of a shell."""

    def __init__(self, number: int) -> None:
        super().__init__(os.strerror(number))
        self.exit_code = NOT_FOUND if number in (errno.ENOENT, errno.ENOTDIR) else NOT_EXECUTABLE


def block_signals() -> tuple[Mask, bool]:
    """Block every signal of this thread, and keep ended children until they are waited for.

    Returns:
      The previous mask, and whether SIGCHLD was ignored: `start` restores both for the command.
    """
    mask = frozenset(int(each) for each in signal.pthread_sigmask(signal.SIG_BLOCK, EVERY_SIGNAL))
    ignored = signal.getsignal(signal.SIGCHLD) == signal.SIG_IGN
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    return mask, ignored


def own_environment() -> dict[bytes, bytes]:
    """Return the environment that this process was given.

    Python adds to it: LC_CTYPE in the C locale (PEP 538).
    """
    try:
        with open("/proc/self/environ", "rb") as file:
            pairs = [entry.partition(b"=") for entry in file.read().split(b"\0")]
    except OSError:
        return dict(os.environb)
    return {name: value for name, sign, value in pairs if name and sign}


def start(argv: Sequence[str], mask: Mask, sigchld_ignored: bool) -> int:
    """Start the command in this process's group; return its pid once it runs.

    Raises:
      CannotStartError: there is no such program, or it cannot be executed.
    """
    reading, writing = os.pipe()  # closed by the exec
    pid = os.fork()
    if pid == 0:
        try:
            for ignored in (signal.SIGPIPE, signal.SIGXFSZ):  # ignored by Python
                signal.signal(ignored, signal.SIG_DFL)
            if sigchld_ignored:
                signal.signal(signal.SIGCHLD, signal.SIG_IGN)
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


def _execute(argv: list[bytes], environment: Mapping[bytes, bytes]) -> int:
    """Execute as execvp(3): search the PATH, and use sh for a file without an interpreter. Return the error, if any."""
    name = argv[0]
    path = environment.get(b"PATH", os.fsencode(os.defpath))
    files = [name] if b"/" in name else [os.path.join(folder, name) for folder in path.split(b":")]
    failure = errno.ENOENT
    for file in files if name else []:
        try:
            os.execve(file, argv, environment)  # noqa: S606  # the command is the user's
        except OSError as error:
            if error.errno == errno.ENOEXEC:
                return _by_shell(file, argv, environment)
            if error.errno == errno.EACCES:
                failure = errno.EACCES  # another folder may have an executable one
            elif error.errno not in (errno.ENOENT, errno.ENOTDIR):
                return error.errno or errno.EIO
    return failure


def _by_shell(file: bytes, argv: list[bytes], environment: Mapping[bytes, bytes]) -> int:
    try:
        os.execve(b"/bin/sh", [b"/bin/sh", file, *argv[1:]], environment)  # noqa: S606  # as execvp(3)
    except OSError as error:
        return error.errno or errno.EIO
    raise AssertionError("unreachable")


def end_as(status: int) -> NoReturn:
    """End this process with a wait status: with the same code, or by the same signal.

    A signal that does not end this process (as process 1 of a container) becomes the exit code 128 + n.
    """
    if os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        most = resource.getrlimit(resource.RLIMIT_CORE)[1]
        resource.setrlimit(resource.RLIMIT_CORE, (min(1, most), most))  # the command's core dump is enough: core(5)
        with contextlib.suppress(OSError, ValueError):  # SIGKILL has no handler, and the C library reserves two
            signal.signal(number, signal.SIG_DFL)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {number})
        os.kill(os.getpid(), number)
        os._exit(128 + number)
    os._exit(os.waitstatus_to_exitcode(status))
