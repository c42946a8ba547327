"""The process of a model as the server sees it: it is started, asked, and killed when it does not answer in time."""

from __future__ import annotations

import os
import queue
import select
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Sequence
from multiprocessing.connection import Connection, Pipe
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from ciml.errors import EngineError, IntegrityError
from ciml.http.intake import RequestError
from ciml.serving.server.model.messages import (
    Answer,
    Call,
    Load,
    Loaded,
    Signature,
    pack,
    receive,
    send,
    unpack,
)
from ciml.serving.server.model.worker import ANSWER, COMMAND, CONNECTIONS, END, FORK
from ciml.version import import_root

if TYPE_CHECKING:
    from numpy.typing import NDArray

_START_S = 300.0  # for the import of TensorFlow on a busy machine
_Reply = TypeVar("_Reply", Loaded, Answer)


class _EndedBeforeError(EOFError):
    """The process had ended before it was asked, for example because the system had no memory."""


class _Forker:
    """The process that imported TensorFlow and forks those of models. Safe to use from threads, not in forks."""

    def __init__(self) -> None:
        self.owner = os.getpid()
        self._lock = threading.Lock()
        self._control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._control.settimeout(_START_S)
        paths = [str(import_root()), *filter(None, [os.environ.get("PYTHONPATH")])]
        with theirs:
            try:
                self._process = subprocess.Popen(
                    [sys.executable, "-P", "-m", "ciml.serving.server.model.worker", str(theirs.fileno())],
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    pass_fds=[theirs.fileno()],
                    env={**os.environ, "PYTHONPATH": os.pathsep.join(paths), "OPENBLAS_NUM_THREADS": "1"},
                    start_new_session=True,  # Ctrl-C must not end models before the server's last answers
                )
            except OSError as error:
                raise EngineError(f"cannot start the process of models: {error.strerror or error}") from error

    def ask(self, command: bytes, pid: int = 0, descriptors: Sequence[int] = ()) -> int:
        """Send a command and return its answer. Raises `OSError` if the process has ended."""
        with self._lock:
            try:
                socket.send_fds(self._control, [COMMAND.pack(command, pid)], descriptors)
                answer = self._control.recv(ANSWER.size)
            except TimeoutError:
                self._process.kill()  # and with it the models
                raise
            if not answer:
                self._process.wait()
                raise ConnectionResetError("the process of models has ended")
            number: int = ANSWER.unpack(answer)[0]
            return number


_forker: _Forker | None = None
_forker_lock = threading.RLock()


def prepare() -> _Forker:
    """Begin to import TensorFlow for the processes of models, which takes seconds. Raises `EngineError`."""
    global _forker
    with _forker_lock:
        if _forker is None or _forker.owner != os.getpid():
            _forker = _Forker()
        return _forker


def _fork(descriptors: Sequence[int]) -> tuple[_Forker, int]:
    global _forker
    with _forker_lock:
        for _ in range(2):
            forker = prepare()
            try:
                pid = forker.ask(FORK, 0, descriptors)
            except OSError as error:
                failure = error
                _forker = None
            else:
                if pid < 0:
                    raise EngineError(f"cannot start the process of a model: {os.strerror(-pid)}")
                return forker, pid
    raise EngineError(f"cannot start the process of a model: {failure}") from failure


class ModelProcess:
    """The process of one model. Safe to use from threads.

    Args:
      call_s: limit of a call, seconds.
      load_s: limit of loading, seconds.

    Raises:
      EngineError: it cannot be started.
    """

    def __init__(self, call_s: float, load_s: float) -> None:
        self._call_s = call_s
        self._load_s = load_s
        self._is_ended = False  # by `end`
        pipes = [Pipe() for _ in range(CONNECTIONS)]
        forker, pid = _fork([theirs.fileno() for _, theirs in pipes])
        self._idle: queue.LifoQueue[tuple[Connection, float]] = queue.LifoQueue()  # with their present limits, seconds
        for ours, theirs in reversed(pipes):  # the first one, on which the process waits for `Load`, is used first
            theirs.close()
            self._idle.put((ours, 0.0))
        self._watched = pipes[0][0]
        self._lock = threading.Lock()
        self._ending = ""
        self._finish = weakref.finalize(self, _end, forker, pid)

    @property
    def ended(self) -> bool:
        """Whether it ended by itself, by its limits or by the system, so that it answers no call any more."""
        return self._is_ended or _is_closed(self._watched)

    def load(self, folder: Path, where: str) -> dict[str, Signature]:
        """Load the model in a folder, and return its signatures.

          Raises:
            IntegrityError: it cannot be loaded.
        EngineError: it is not loaded in time.
        """
        try:
            answer = self._ask(self._idle.get(), Load(str(folder), where, self._call_s), Loaded, self._load_s)
        except BlockingIOError:
            self.end()
            message = f"{where}: loading takes longer than {self._load_s:g} s (MAX_MODEL_LOAD_S)"
            raise EngineError(message) from None
        except (EOFError, OSError, ValueError):
            raise IntegrityError(f"{where}: its process {self.end()} while it was loaded") from None
        if answer.error:
            raise IntegrityError(answer.error)
        return answer.signatures

    def run(
        self, signature: Signature, inputs: Sequence[NDArray[Any]], timeout_s: float | None = None
    ) -> list[NDArray[Any]]:
        """Run a signature. Kill the process if it does not answer.

        Args:
          signature: of this process.
          inputs: arrays of its inputs, in their order.
          timeout_s: how long the client waits, seconds, up to the limit of a call.

        Returns:
          The arrays of its outputs, which cannot be written to.

        Raises:
          RequestError: INVALID_ARGUMENT if it rejects the inputs, DEADLINE_EXCEEDED if it takes too long, INTERNAL if
            the process ended during the call, UNAVAILABLE if it had ended before or is killed for another call.
        """
        # An abandoned call must not occupy the threads of later ones.
        limit_s = max(self._call_s if timeout_s is None else min(self._call_s, timeout_s), 0.001)
        arrays = [pack(array, spec.dtype) for array, spec in zip(inputs, signature.inputs.values(), strict=True)]
        silent_s = self._call_s + 1.0 + self._call_s / 6  # with a grace after TensorFlow's own time limit
        until_s = time.monotonic() + limit_s
        try:
            idle = self._idle.get(timeout=limit_s)
        except queue.Empty:
            message = f"signature {signature.name!r}: {CONNECTIONS} other calls have run for {limit_s:.3g} s"
            raise RequestError("DEADLINE_EXCEEDED", message) from None
        call = Call(signature.name, max(until_s - time.monotonic(), 0.001), arrays)
        try:
            answer = self._ask(idle, call, Answer, silent_s)
            if answer.code:
                raise RequestError(answer.code, answer.message)
            specs = signature.outputs.values()
            return [unpack(array, spec.dtype) for array, spec in zip(answer.outputs, specs, strict=True)]
        except BlockingIOError:
            self.end()
            message = (
                f"signature {signature.name!r} takes longer than {self._call_s:.3g} s for one call; "
                "its process was killed"
            )
            raise RequestError("DEADLINE_EXCEEDED", message) from None
        except (EOFError, OSError, ValueError) as error:
            if self._is_ended or isinstance(error, _EndedBeforeError):
                self.end()
                raise _unavailable() from None
            message = f"signature {signature.name!r}: the model's process {self.end()}"
            raise RequestError("INTERNAL", message) from None

    def _ask(self, idle: tuple[Connection, float], request: Load | Call, kind: type[_Reply], limit_s: float) -> _Reply:
        """Return the process's answer. Raises `BlockingIOError` after ``limit_s`` seconds, and as `receive` does."""
        connection, present_limit_s = idle
        try:
            if self.ended:
                raise _EndedBeforeError
            if limit_s != present_limit_s:
                _limit_silence(connection, limit_s)
            send(connection, request)
            return receive(connection, kind)
        except (OSError, EOFError, ValueError):
            raise
        except BaseException:  # such as Ctrl-C: the next call would take the answer that is still to come for its own
            self.end()
            raise
        finally:
            self._idle.put((connection, limit_s))

    def end(self) -> str:
        """Kill the process, which ends its calls. Return how it ended, for messages."""
        with self._lock:
            self._is_ended = True
            self._ending = self._finish() or self._ending
            return self._ending


def _is_closed(connection: Connection) -> bool:
    """Return whether the other end is closed."""
    poll = select.poll()
    poll.register(connection, 0)
    return bool(poll.poll(0))


def _limit_silence(connection: Connection, seconds: float) -> None:
    limit = struct.pack("ll", int(seconds), int(seconds % 1 * 1e6))
    with socket.socket(fileno=os.dup(connection.fileno())) as copy:
        for option in (socket.SO_RCVTIMEO, socket.SO_SNDTIMEO):
            copy.setsockopt(socket.SOL_SOCKET, option, limit)


def _unavailable() -> RequestError:
    return RequestError("UNAVAILABLE", "the model's process has ended; it is loaded again")


def _end(forker: _Forker, pid: int) -> str:
    """Kill a process of a model, and return how it ended."""
    if forker.owner != os.getpid():  # this is a fork of the server
        return "belongs to another server"
    try:
        status = forker.ask(END, pid)
    except OSError:
        return "ended with the process that forked it"
    if os.WIFSIGNALED(status):
        return f"was killed by {signal.Signals(os.WTERMSIG(status)).name}"
    return f"ended with exit code {os.waitstatus_to_exitcode(status)}"
