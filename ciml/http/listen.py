"""The listening socket of an HTTP server, and the open files that its connections take."""

from __future__ import annotations

import resource
import socket
from collections.abc import Mapping

from ciml.errors import CimlError, EngineError
from ciml.limits import SPARE_FILES


def listen(host: str, port: int) -> socket.socket:
    """Return a bound socket; port 0 lets the system choose one. Raises `EngineError` if the address is not free."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # With an explicit protocol asyncio sets TCP_NODELAY on accepted sockets; else each answer waits 40 ms.
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    try:
        listener.bind((host, port))
    except OSError as error:
        listener.close()
        raise EngineError(f"cannot listen on {host}:{port}: {error.strerror or error}") from None
    return listener


def check_open_files(connections: Mapping[str, int], options: str) -> None:
    """Check that the process may open files for its connections: without free descriptors it accepts none.

    Args:
      connections: the most open connections, by what they are.
      options: the options that lower these numbers.

    Raises:
      CimlError: the process's limit of open files is lower.
    """
    needed = sum(connections.values()) + SPARE_FILES
    allowed = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    if allowed != resource.RLIM_INFINITY and needed > allowed:
        listed = " and ".join(f"{number} {what}" for what, number in connections.items())
        raise CimlError(
            f"{listed} connections take {needed} files; the limit is {allowed}: raise it (ulimit -n {needed}) or "
            f"lower {options}"
        )
