"""The limit of gRPC connections: one with an unanswered request is not closed, nor another file with its number."""

from __future__ import annotations

import asyncio
import os
import socket
from pathlib import Path

import pytest

from ciml.http.intake import ConnectionLimiter
from ciml.serving.server.grpc_connections import GrpcConnections, peer_of
from tests.serving.server.test_idle_connections import is_closed


class Clients:
    """Connections of clients to a listening socket of this process, of which `GrpcConnections` allows one."""

    def __init__(self, listener: socket.socket) -> None:
        self.connections = GrpcConnections(ConnectionLimiter(1, 10.0, 20.0, 30.0, "MAX_GRPC_CONNECTIONS"))
        self._listener = listener
        self.port: int = listener.getsockname()[1]

    def connect(self) -> tuple[socket.socket, socket.socket]:
        """Return a new connection as the client and as the server have it, after it was counted."""
        client = socket.create_connection(("127.0.0.1", self.port))
        served, _ = self._listener.accept()
        self.connections.count(self.port)
        return client, served


def test_a_connection_is_closed_only_if_none_of_its_requests_is_unanswered() -> None:
    async def check(clients: Clients) -> None:
        first, _served = clients.connect()
        name = f"ipv4:127.0.0.1:{first.getsockname()[1]}"
        with clients.connections.request(name):
            with clients.connections.request(name):
                pass
            second, _served_too = clients.connect()
            assert (is_closed(first), is_closed(second)) == (False, True)
        third, _served_last = clients.connect()
        assert (is_closed(first), is_closed(third)) == (True, False)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        asyncio.run(check(Clients(listener)))


def test_another_file_that_has_the_number_of_a_closed_connection_stays_open() -> None:
    async def check(clients: Clients) -> None:
        _client, served = clients.connect()
        one, other = socket.socketpair()
        os.dup2(one.fileno(), served.fileno())  # the connection is closed, and its number used again
        newer, _served = clients.connect()
        assert (is_closed(other), is_closed(newer)) == (False, False)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        asyncio.run(check(Clients(listener)))


def test_counting_leaves_no_file_open(tmp_path: Path) -> None:
    async def check(clients: Clients) -> None:
        _client, _served = clients.connect()
        ends = os.pipe()
        with (tmp_path / "log").open("w"):
            before = os.listdir("/dev/fd")
            clients.connections.count(clients.port)
            assert set(os.listdir("/dev/fd")) <= set(before)
        for end in ends:
            os.close(end)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        asyncio.run(check(Clients(listener)))


@pytest.mark.parametrize(
    ("name", "peer"),
    [
        ("ipv4:127.0.0.1:5000", ("127.0.0.1", 5000)),
        ("ipv6:%5B::1%5D:5000", ("::1", 5000)),
        ("ipv6:[fe80::1%25eth0]:5000", ("fe80::1", 5000)),
        ("ipv6:[::ffff:10.0.0.1]:7", ("10.0.0.1", 7)),
        ("unix:/tmp/x", None),
        ("", None),
    ],
)
def test_clients_are_named_as_their_sockets(name: str, peer: tuple[str, int] | None) -> None:
    assert peer_of(name) == peer
