"""What goes wrong around a service, and is repaired: a link that is cut or hangs, a full disk, a broker that dies."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Literal

from ciml import engines

Mode = Literal["open", "refused", "hanging"]


class Link:
    """A TCP proxy on a port of this machine.

    Args:
      target: the port behind it.
    """

    def __init__(self, target: int) -> None:
        self._target = target
        self._mode: Mode = "open"
        self._listener: socket.socket | None = None
        self._sockets: set[socket.socket] = set()
        self._lock = threading.Lock()
        self.port = 0
        self._listen()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def set(self, mode: Mode) -> None:
        """Cut all connections; from now on refuse new ones, or accept them and answer nothing."""
        self._mode = mode
        if mode == "refused":
            self._close_listener()
        with self._lock:
            sockets, self._sockets = self._sockets, set()
        for one in sockets:
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
            one.close()
        if mode != "refused" and self._listener is None:
            self._listen()

    def close(self) -> None:
        self.set("refused")

    def _listen(self) -> None:
        listener = socket.socket()
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(("127.0.0.1", self.port))
        listener.listen(64)
        self.port, self._listener = listener.getsockname()[1], listener
        threading.Thread(target=self._accept, args=(listener,), daemon=True).start()

    def _close_listener(self) -> None:
        listener, self._listener = self._listener, None
        if listener is not None:
            with contextlib.suppress(OSError):
                listener.shutdown(socket.SHUT_RDWR)
            listener.close()

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                client, _ = listener.accept()
            except OSError:
                return
            with self._lock:
                self._sockets.add(client)
            if self._mode == "open":
                server = socket.create_connection(("127.0.0.1", self._target))
                with self._lock:
                    self._sockets.add(server)
                for source, sink in ((client, server), (server, client)):
                    threading.Thread(target=self._copy, args=(source, sink), daemon=True).start()

    def _copy(self, source: socket.socket, sink: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(1 << 16):
                sink.sendall(data)
        for one in (source, sink):
            with self._lock:
                self._sockets.discard(one)
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
            one.close()


class Broker:
    """A real broker of its own, which dies and is started again on its port with its topics."""

    def __init__(self, home: Path) -> None:
        self._home, self._stack = home, ExitStack()
        running = self._stack.enter_context(engines.start(["kafka"], home, engines.Settings(tied=True)))
        assert not running.light, running.notes
        self._state = running.states["kafka"]
        self.address = running.kafka

    def die(self) -> None:
        assert self._state.pid is not None
        os.kill(self._state.pid, signal.SIGKILL)

    def live(self) -> None:
        settings = engines.Settings(tied=True, ports=self._state.ports)
        self._state = self._stack.enter_context(engines.start(["kafka"], self._home, settings)).states["kafka"]

    def close(self) -> None:
        self._stack.close()


@contextmanager
def small_disk(folder: Path, kib: int = 8192) -> Iterator[Path]:
    """A file system of a few MiB, mounted on a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={kib}k", "tmpfs", str(folder)], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


@contextmanager
def full(folder: Path) -> Iterator[None]:
    """Fill a disk, and fill what becomes free, until the context ends."""
    path = folder / "filler"
    freed = threading.Event()

    def fill() -> None:
        with path.open("wb", buffering=0) as file:
            while not freed.wait(0.02):
                with contextlib.suppress(OSError):
                    while file.write(b"x" * 4096):
                        pass

    thread = threading.Thread(target=fill)
    thread.start()
    try:
        yield
    finally:
        freed.set()
        thread.join()
        path.unlink()


@contextmanager
def taken(port: int) -> Iterator[None]:
    """Another process's socket on a port."""
    with socket.socket() as one:
        one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        one.bind(("127.0.0.1", port))
        one.listen(1)
        yield
