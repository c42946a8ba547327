"""uvicorn on a socket, with limits on connections and a graceful end."""

from __future__ import annotations

import asyncio
import logging
import socket
from typing import TYPE_CHECKING

import uvicorn

from ciml.http.connections import Connections
from ciml.limits import MAX_HEADER_BYTES

if TYPE_CHECKING:
    from starlette.applications import Starlette

_ACCEPTED_AT_ONCE = 64  # each takes a file descriptor before it is counted
_BACKLOG = 1024


class HttpServer:
    """An application that is served on a socket. Belongs to one event loop.

    Args:
      app: the application.
      listener: a bound socket.
      connections: their limits.
      grace_s: time at the end to answer requests that have begun, seconds.

    Attributes:
      done: the task that ends with the server.
    """

    done: asyncio.Task[None]

    def __init__(self, app: Starlette, listener: socket.socket, connections: Connections, grace_s: int = 5) -> None:
        # It warns of each request that is not HTTP, of which a client can send any number.
        logging.getLogger("uvicorn.error").setLevel(logging.ERROR)
        self._listener = listener
        self._server = uvicorn.Server(
            uvicorn.Config(
                app,
                http=connections.protocol(),
                ws="none",
                h11_max_incomplete_event_size=MAX_HEADER_BYTES,
                backlog=_ACCEPTED_AT_ONCE,
                proxy_headers=False,  # limits are by the address that is connected
                server_header=False,
                log_config=None,
                access_log=False,
                lifespan="off",
                timeout_graceful_shutdown=grace_s,
            )
        )

    async def start(self) -> None:
        """Serve; return when connections are accepted."""
        self.done = asyncio.create_task(self._server.serve(sockets=[self._listener]))
        while not self._server.started:
            if self.done.done():
                self.done.result()
            await asyncio.sleep(0.01)
        self._listener.listen(_BACKLOG)  # also the number of connections that uvicorn accepts in one turn

    async def stop(self) -> None:
        """Accept no more connections, answer what has begun, and end."""
        self._server.should_exit = True
        await self.done
