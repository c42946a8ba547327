"""The process of a model as the server sees it: it is started, asked, and killed when it does not answer in time."""

from __future__ import annotations

import contextlib
import os
import queue
import signal
import socket
import struct
import subprocess
import sys
import threading
import weakref
from collections.abc import Sequence
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ciml.errors import EngineError, IntegrityError
from ciml.http.intake import RequestError
from ciml.serving.server.model.loaded_model import Signature, TensorSpec
from ciml.serving.server.model.messages import (
    Answer,
    Call,
    Load,
    Loaded,
    SignatureDescription,
    TensorDescription,
    receive,
    send,
)
from ciml.serving.server.model.worker import ANSWER, COMMAND, CONNECTIONS, END, FORK
from ciml.version import import_root

if TYPE_CHECKING:
    from numpy.typing import NDArray

_START_S = 300.0  # for the import of TensorFlow on a busy machine


def grace_s(limit_s: float) -> float:
    """Return the time that a process has for its answer after TensorFlow's own time limit, seconds."""
    return 1.0 + limit_s / 6


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
_forker_lock = threading.Lock()


def prepare() -> None:
    """Begin to import TensorFlow for the processes of models, which takes seconds. Raises `EngineError`."""
    with _forker_lock:
        _present_forker()


def _present_forker() -> _Forker:
    global _forker
    if _forker is None or _forker.owner != os.getpid():
        _forker = _Forker()
    return _forker


def _fork(descriptors: Sequence[int]) -> tuple[_Forker, int]:
    global _forker
    with _forker_lock:
        for _ in range(2):
            forker = _present_forker()
            try:
                return forker, forker.ask(FORK, 0, descriptors)
            except OSError as error:
                failure = error
                _forker = None
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
        self._silent_s = call_s + grace_s(call_s)
        pairs = [socket.socketpair() for _ in range(CONNECTIONS)]
        try:
            forker, pid = _fork([theirs.fileno() for _, theirs in pairs])
        except BaseException:
            for ours, _ in pairs:
                ours.close()
            raise
        finally:
            for _, theirs in pairs:
                theirs.close()
        self._sockets = [ours for ours, _ in pairs]
        self._idle: queue.LifoQueue[Connection] = queue.LifoQueue()
        for ours in self._sockets:
            self._limit_silence(ours, self._silent_s)
            self._idle.put(Connection(os.dup(ours.fileno())))
        self.ended = False
        self._lock = threading.Lock()
        self._status = 0
        self._finish = weakref.finalize(self, _end, forker, pid, self._sockets)

    @staticmethod
    def _limit_silence(ours: socket.socket, seconds: float) -> None:
        limit = struct.pack("ll", int(seconds), int(seconds % 1 * 1e6))
        for option in (socket.SO_RCVTIMEO, socket.SO_SNDTIMEO):
            ours.setsockopt(socket.SOL_SOCKET, option, limit)

    def load(self, folder: Path, where: str) -> dict[str, SignatureDescription]:
        """Load the model in a folder, and return its signatures.

        Raises:
          IntegrityError: it cannot be loaded, or not in time.
        """
        first = self._sockets[0]
        connection = self._connection_of_first()
        self._limit_silence(first, self._load_s)
        try:
            send(connection, Load(str(folder), where, self._call_s))
            answer, _ = receive(connection, Loaded)
        except BlockingIOError:
            self.end()
            message = f"{where}: loading takes longer than {self._load_s:g} s (MAX_MODEL_LOAD_S)"
            raise IntegrityError(message) from None
        except (EOFError, OSError, ValueError):
            raise IntegrityError(f"{where}: its process {self.end()} while it was loaded") from None
        self._limit_silence(first, self._silent_s)
        if answer.error:
            raise IntegrityError(answer.error)
        return answer.signatures

    def _connection_of_first(self) -> Connection:
        connections = [self._idle.get() for _ in range(CONNECTIONS)]
        for connection in reversed(connections):
            self._idle.put(connection)
        return connections[-1]

    def signature(self, name: str, description: SignatureDescription) -> Signature:
        """Return a signature that runs in this process."""
        return Signature(name, _specs(description.inputs), _specs(description.outputs), partial(self.run, name))

    def run(self, name: str, feeds: Sequence[NDArray[Any]], limit_s: float) -> list[NDArray[Any]]:
        """Run a signature. Kill the process if it does not answer.

        Raises:
          RequestError: INVALID_ARGUMENT if it rejects the inputs, DEADLINE_EXCEEDED if it takes too long, INTERNAL if
            the process ended during the call, UNAVAILABLE if it had ended before or is killed for another call.
        """
        connection = self._idle.get()
        try:
            if self.ended:
                raise _unavailable()
            send(connection, Call(name, limit_s), feeds)
            answer, values = receive(connection, Answer)
        except BlockingIOError:
            self.end()
            message = f"signature {name!r} takes longer than {self._call_s:.3g} s for one call; its process was killed"
            raise RequestError("DEADLINE_EXCEEDED", message) from None
        except (EOFError, OSError, ValueError):
            if self.ended:
                raise _unavailable() from None
            raise RequestError("INTERNAL", f"signature {name!r}: the model's process {self.end()}") from None
        finally:
            self._idle.put(connection)
        if answer.code:
            raise RequestError(answer.code, answer.message)
        return [value if value.dtype.kind == "O" else value.copy() for value in values]

    def end(self) -> str:
        """Kill the process. Return how it ended, for messages."""
        with self._lock:
            self.ended = True
            status = self._finish()
            self._status = self._status if status is None else status
        if os.WIFSIGNALED(self._status):
            number = os.WTERMSIG(self._status)
            return f"was killed by {signal.Signals(number).name}"
        return f"ended with exit code {os.waitstatus_to_exitcode(self._status)}"


def _unavailable() -> RequestError:
    return RequestError("UNAVAILABLE", "the model's process has ended; it is loaded again")


def _end(forker: _Forker, pid: int, sockets: Sequence[socket.socket]) -> int:
    for ours in sockets:
        with contextlib.suppress(OSError):
            ours.shutdown(socket.SHUT_RDWR)  # ends calls that wait for an answer
        ours.close()
    if forker.owner != os.getpid():
        return 0  # a fork of the server
    with contextlib.suppress(OSError):
        return forker.ask(END, pid)
    return 0


def _specs(tensors: Sequence[TensorDescription]) -> dict[str, TensorSpec]:
    return {tensor.name: TensorSpec(tensor.name, tensor.tensor, tensor.dtype, tensor.shape) for tensor in tensors}
