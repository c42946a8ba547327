"""Processes of models: ``python -m ciml.serving.server.model.worker FD`` imports TensorFlow, and forks one for each
model.

A graph cannot be interrupted while TensorFlow folds its constants or runs one operation, so each model runs in a
process that can be killed. A fork shares the memory of the import, and takes a few milliseconds instead of seconds.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import gc
import os
import resource
import signal
import socket
import struct
import sys
import threading
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING

from ciml.errors import IntegrityError
from ciml.http.intake import RequestError
from ciml.limits import MAX_MODEL_MEMORY_BYTES
from ciml.logs import configure_logging
from ciml.serving.server.model.messages import Answer, Call, Load, Loaded, one_line, pack, receive, send, unpack
from ciml.tensorflow import declare_own_process, load_tensorflow

if TYPE_CHECKING:
    from ciml.serving.server.model.graph import Graph

#: Connections of a process: calls that run at a time.
CONNECTIONS = 4
FORK = b"F"
END = b"E"
#: A command and a process id; the answer is a wait status, or the id of the new process, or minus an error number.
COMMAND = struct.Struct("<cq")
ANSWER = struct.Struct("<q")
_PR_SET_PDEATHSIG = 1


def main(control_fd: int) -> None:
    """Fork and end processes as the server asks. End with all of them when the server closes the socket."""
    configure_logging()
    declare_own_process(threads=None, deterministic=False)
    load_tensorflow()
    import ciml.serving.server.model.graph  # noqa: F401 - before the first fork

    gc.collect()
    gc.freeze()  # else collections in the children copy the shared pages
    control = socket.socket(fileno=control_fd)
    children: set[int] = set()
    while True:
        data, descriptors, _, _ = socket.recv_fds(control, COMMAND.size, CONNECTIONS)
        if not data:
            break
        command, pid = COMMAND.unpack(data)
        if command == FORK:
            answer = _fork(control, descriptors)
            if answer > 0:
                children.add(answer)
        else:
            answer = _end(pid) if pid in children else 0
            children.discard(pid)
        control.sendall(ANSWER.pack(answer))
    for pid in children:
        _end(pid)


def _end(pid: int) -> int:
    """Kill a child, and return its wait status: that of its own end if it had ended before."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
    return os.waitpid(pid, 0)[1]


def _fork(control: socket.socket, descriptors: list[int]) -> int:
    parent = os.getpid()
    try:
        pid = os.fork()
    except OSError as error:  # without memory or processes: this one must live, or all models end with it
        pid = -(error.errno or errno.EAGAIN)
    if pid:
        for descriptor in descriptors:
            os.close(descriptor)
        return pid
    status = 1
    try:
        control.close()
        _limit(parent)
        _serve([Connection(descriptor) for descriptor in descriptors])
        status = 0
    finally:
        os._exit(status)


def _limit(parent: int) -> None:
    """End with the parent, take limited memory, and be the first process that a system without memory kills."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000")
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with contextlib.suppress(ValueError, OSError):  # a lower hard limit is kept
        resource.setrlimit(resource.RLIMIT_DATA, (MAX_MODEL_MEMORY_BYTES, MAX_MODEL_MEMORY_BYTES))


def _serve(connections: list[Connection]) -> None:
    """Load the model that the first message names, and answer calls until the server closes a connection."""
    from ciml.serving.server.model.graph import Graph

    request = receive(connections[0], Load)
    try:
        graph = Graph(Path(request.folder), request.where, request.call_s)
    except IntegrityError as error:
        send(connections[0], Loaded(error=str(error)))
        return
    send(connections[0], Loaded(graph.signatures))
    for connection in connections[1:]:
        threading.Thread(target=_answer_calls, args=(graph, connection), daemon=True).start()
    _answer_calls(graph, connections[0])


def _answer_calls(graph: Graph, connection: Connection) -> None:
    try:
        while True:
            send(connection, _answer(graph, receive(connection, Call)))
    except (EOFError, OSError):  # the server has closed the connection
        os._exit(0)
    finally:
        os._exit(1)  # a thread that ends alone would leave its caller waiting


def _answer(graph: Graph, call: Call) -> Answer:
    try:
        signature = graph.signatures[call.signature]
        inputs = [unpack(array, spec.dtype) for array, spec in zip(call.inputs, signature.inputs.values(), strict=True)]
        outputs = graph.run(call.signature, inputs, call.limit_s)
        return Answer(
            [pack(array, spec.dtype) for array, spec in zip(outputs, signature.outputs.values(), strict=True)]
        )
    except RequestError as error:
        return Answer(code=error.code, message=error.message)
    except Exception as error:  # noqa: BLE001 - the call fails, and the process answers others
        text = one_line(f"signature {call.signature!r}: {type(error).__name__}: {error}")
        return Answer(code="INTERNAL", message=text)


if __name__ == "__main__":
    main(int(sys.argv[1]))
