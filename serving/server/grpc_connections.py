"""Limit of open gRPC connections: at one more, one that has waited longest for a complete request is closed.

gRPC accepts connections itself, and beyond its own limit it rejects new ones until an idle one times out. So its
limit is higher, and this module closes connections: it finds their sockets among the open files of the process.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import os
import re
import socket
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import unquote

from ciml.http.intake import ConnectionLimiter

#: Connections that gRPC may accept before they are counted.
UNCOUNTED = 64
_INTERVAL_S = 0.1
_PEER = re.compile(r"ipv[46]:\[?([0-9A-Fa-f.:]+?)(?:%[^\]]*)?\]?:(\d+)")

#: The address and port of a client.
Peer = tuple[str, int]


class GrpcConnection:
    """An open connection of a client, as a `ConnectionLimiter` counts it.

    Args:
      limiter: counts it.
      peer: its client.
      descriptor, inode: its socket, which gRPC owns and closes.
    """

    def __init__(self, limiter: ConnectionLimiter, peer: Peer, descriptor: int, inode: int) -> None:
        self.loop = asyncio.get_running_loop()
        self.peer = peer
        self.address = peer[0]
        self._limiter = limiter
        self._descriptor = descriptor
        self._inode = inode

    def reject(self, status: int, message: str) -> None:
        """Close the connection without status and message, which gRPC has no place for."""
        del status, message
        self._limiter.remove(self)
        with contextlib.suppress(OSError), _copy_socket(self._descriptor) as copy:
            if os.fstat(copy.fileno()).st_ino == self._inode:  # else it is closed, and another has its number
                copy.shutdown(socket.SHUT_RDWR)


class GrpcConnections:
    """The open gRPC connections. Belongs to the event loop of the server.

    Args:
      limiter: counts them, and chooses which one is closed.
    """

    def __init__(self, limiter: ConnectionLimiter) -> None:
        self.limiter = limiter
        self._by_inode: dict[int, GrpcConnection | None] = {}  # None: another open file
        self._by_peer: dict[Peer, GrpcConnection] = {}
        self._requests: Counter[Peer] = Counter()  # complete and unanswered

    @contextmanager
    def request(self, peer_name: str) -> Iterator[None]:
        """Mark a connection as one with a complete request while the block runs.

        Args:
          peer_name: its client as gRPC names it.
        """
        peer = peer_of(peer_name)
        if peer is None:
            yield
            return
        self._requests[peer] += 1
        if (connection := self._by_peer.get(peer)) is not None:
            self.limiter.mark_working(connection)
        try:
            yield
        finally:
            self._requests[peer] -= 1
            if not self._requests[peer]:
                del self._requests[peer]
                if (connection := self._by_peer.get(peer)) is not None:
                    self.limiter.mark_waiting(connection)

    async def watch(self, port: int) -> None:
        """Count the connections of a port, and close those beyond the limit, until it is cancelled."""
        while True:
            self.count(port)
            await asyncio.sleep(_INTERVAL_S)

    def count(self, port: int) -> None:
        """Count the connections that were opened and closed since the last call."""
        present: dict[int, GrpcConnection | None] = {}
        for name in os.listdir("/dev/fd"):
            with contextlib.suppress(OSError):  # it was closed meanwhile
                inode = os.fstat(int(name)).st_ino
                if inode in self._by_inode:
                    present[inode] = self._by_inode[inode]
                elif inode not in present:
                    present[inode] = self._opened(int(name), inode, port)
        for inode, connection in self._by_inode.items():
            if connection is not None and inode not in present:
                self._closed(connection)
        self._by_inode = present

    def _opened(self, descriptor: int, inode: int, port: int) -> GrpcConnection | None:
        peer = _peer_of_socket(descriptor, port)
        if peer is None:
            return None
        connection = self._by_peer[peer] = GrpcConnection(self.limiter, peer, descriptor, inode)
        self.limiter.add(connection)
        if peer in self._requests:
            self.limiter.mark_working(connection)
        return connection

    def _closed(self, connection: GrpcConnection) -> None:
        self.limiter.remove(connection)
        if self._by_peer.get(connection.peer) is connection:
            del self._by_peer[connection.peer]


def peer_of(name: str) -> Peer | None:
    """Return the address and port of a client as gRPC names it; None if it has none."""
    match = _PEER.fullmatch(unquote(name))
    return (_plain_address(match[1]), int(match[2])) if match else None


def _plain_address(host: str) -> str:
    address = ipaddress.ip_address(host.partition("%")[0])
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return str(mapped or address)


def _peer_of_socket(descriptor: int, port: int) -> Peer | None:
    """Return the client that a socket connects to a port; None for another open file."""
    with contextlib.suppress(OSError), _copy_socket(descriptor) as copy:
        if copy.family in (socket.AF_INET, socket.AF_INET6) and copy.getsockname()[1] == port:
            host, number = copy.getpeername()[:2]  # an error for one that listens, or whose client has gone
            return _plain_address(host), number
    return None


def _copy_socket(descriptor: int) -> socket.socket:
    """Return a copy of an open socket. Raises `OSError`, and leaves nothing open, for another kind of file."""
    copy = os.dup(descriptor)
    try:
        return socket.socket(fileno=copy)
    except OSError:
        os.close(copy)
        raise
