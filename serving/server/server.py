"""The model server: TensorFlow Serving's gRPC and REST API, with a polled configuration file.

This process imports no TensorFlow; models run in processes of their own (`ciml.serving.server.model.worker`).
"""

from __future__ import annotations

import asyncio
import gc
import json
import logging
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial
from typing import Any

from ciml.data_root import DataRoot
from ciml.errors import CimlError, EngineError
from ciml.extras import require
from ciml.http.intake import ConnectionLimiter, Intake, Workers, check_open_files
from ciml.http.server import HttpServer, listen
from ciml.limits import (
    MAX_BODY_S,
    MAX_GRPC_CONNECTIONS,
    MAX_HEADER_S,
    MAX_MODEL_CALL_S,
    MAX_READING_REQUESTS,
    MAX_REQUEST_BYTES,
    MAX_REQUEST_ROWS,
    MAX_REST_CONNECTIONS,
)
from ciml.metrics import serve_metrics
from ciml.serving import EXTRA
from ciml.serving.model_files import CONFIG_NAME, ModelEntry, parse_config
from ciml.serving.registries import RegistryVerifier
from ciml.serving.server.grpc_connections import GrpcConnections
from ciml.serving.server.manager import ModelChoice, ModelManager
from ciml.serving.server.metrics import Metrics
from ciml.serving.server.model.loaded_model import load_model
from ciml.serving.server.model.process import prepare
from ciml.storage import open_store

_LOG = logging.getLogger(__name__)
#: How often registries are read for versions that were withdrawn while the configuration was not written, seconds.
_REGISTRY_S = 5.0


@dataclass(frozen=True)
class ServerOptions:
    """Options of a model server.

    Attributes:
      config: the ModelServerConfig in text form, local or ``s3://``. It may be created later.
      registry: the folder of the registries, which name the versions that may be served and their files. None derives
        it from ``config`` (``DATA/models/models.config`` has ``DATA/registry``).
      verify: False serves every configured version, as TensorFlow Serving does.
      host: the address to listen on. There is no authentication: use a private one.
      grpc_port, rest_port: 0 lets the system choose.
      poll_s: interval of polling the configuration; a push is served after at most this and the load.
      max_bytes: the largest request. 16 MiB is a batch of 500 runs of 550 windows and 14 features.
      max_rows: the largest batch.
      threads: requests processed at a time. A call takes a fraction of a millisecond: a few suffice.
      rest_connections, grpc_connections: most open connections. With SPARE_FILES they must fit into the process's limit
        of open files.
      header_s: limit for a request's header, a handshake, and reading a response, seconds.
      body_s: limit for the rest of a request, seconds.
      metrics_port, metrics_address: an additional endpoint of the metrics, apart from requests; None serves them only
        under REST's ``/monitoring/prometheus/metrics``.
      allow_reload: accept HandleReloadConfigRequest, with which any client chooses the served models.
    """

    config: str
    registry: str | None = None
    verify: bool = True
    host: str = "127.0.0.1"
    grpc_port: int = 8500
    rest_port: int = 8501
    poll_s: float = 0.5
    max_bytes: int = MAX_REQUEST_BYTES
    max_rows: int = MAX_REQUEST_ROWS
    threads: int = 8
    rest_connections: int = MAX_REST_CONNECTIONS
    grpc_connections: int = MAX_GRPC_CONNECTIONS
    header_s: float = MAX_HEADER_S
    body_s: float = MAX_BODY_S
    allow_reload: bool = False
    metrics_port: int | None = None
    metrics_address: str = "127.0.0.1"

    def registry_root(self) -> str | None:
        """Return the folder of the registries, or None without verification.

        Raises `CimlError` if it is unknown.
        """
        if not self.verify:
            return None
        if self.registry is not None:
            return self.registry
        folder, name = os.path.split(self.config)
        data = DataRoot.open(os.path.dirname(folder) or ".")
        if name == CONFIG_NAME and open_store(folder or ".") == data.models:
            return data.registry.root
        raise CimlError(f"cannot derive the registry from {self.config}; give --registry FOLDER, or --unverified")


class ModelServer:
    """A model server in this process.

    As a context manager it starts and tries to load each configured version on entry, and stops on exit.
    """

    def __init__(self, options: ServerOptions) -> None:
        self.options = options
        self.grpc_port = options.grpc_port
        self.rest_port = options.rest_port
        self._stop = threading.Event()
        self._threads: list[threading.Thread] = []
        self._config_text: bytes | None = None
        self._configured: tuple[ModelEntry, ...] = ()  # by the last valid configuration
        self._applied: tuple[ModelEntry, ...] = ()  # without versions that are withdrawn
        self._verifier: RegistryVerifier | None = None
        self._check_at_s = 0.0  # when registries are read again
        self._reading = threading.Lock()  # what was read first is applied first
        folder, _, self._config_name = options.config.rpartition("/")
        self._config_store = open_store(folder or ".")

    def start(self) -> None:
        """Start the process of models, listen, and begin to load the configured versions.

        Raises `CimlError` on failure.
        """
        require("tensorflow", EXTRA)  # else the process of `prepare` prints a traceback as well
        options = self.options
        root = options.registry_root()
        check_open_files(
            {"REST": options.rest_connections, "gRPC": options.grpc_connections},
            "--rest-connections or --grpc-connections",
        )
        listener = listen(options.host, options.rest_port)
        self.rest_port = listener.getsockname()[1]
        prepare()  # it takes seconds: models are loaded and requests answered when it is done
        self.metrics = Metrics()
        self._verifier = RegistryVerifier(root) if root is not None else None
        self.manager = ModelManager(
            self._verifier,
            partial(load_model, max_rows=options.max_rows, call_s=MAX_MODEL_CALL_S),
            on_load=self.metrics.record_load,
        )
        self.metrics.watch(self.manager)
        # Imported objects stay in memory. If they are not frozen, a collection traverses them, and every request waits.
        gc.collect()
        gc.freeze()
        started: Future[int] = Future()
        with self._reading:
            self._read_config()  # before the first request: without a configuration it is ready
        self._run("serve", lambda: asyncio.run(self._serve(listener, started)))
        self.grpc_port = started.result()
        self._run("poll", self._poll_forever)

    async def _serve(self, listener: socket.socket, started: Future[int]) -> None:
        self._loop = asyncio.get_running_loop()
        self._stopping = asyncio.Event()
        workers = Workers(self.options.threads)
        try:
            rest = await self._serve_rest(listener, workers)
            grpc, watching = await self._serve_grpc(workers)
        except BaseException as error:  # noqa: BLE001 - `start`, in another thread, raises it
            started.set_exception(error)
            return
        started.set_result(self.grpc_port)
        await self._stopping.wait()
        await asyncio.gather(rest.stop(), grpc.stop(grace=5))
        watching.cancel()
        workers.close()

    async def _serve_rest(self, listener: socket.socket, workers: Workers) -> HttpServer:
        from ciml.serving.server.rest import RestApi

        maximum = self.options.rest_connections
        api = RestApi(self.manager, self.metrics, self._intake(maximum), workers)
        server = HttpServer(api.app(), listener, self._connections(maximum, "MAX_REST_CONNECTIONS"))
        await server.start()
        return server

    async def _serve_grpc(self, workers: Workers) -> tuple[Any, asyncio.Task[None]]:
        from ciml.serving.server.grpc_service import GrpcApi

        options = self.options
        connections = GrpcConnections(self._connections(options.grpc_connections, "MAX_GRPC_CONNECTIONS"))
        apply_config = self._apply_config if options.allow_reload else None
        api = GrpcApi(
            self.manager, self.metrics, self._intake(MAX_READING_REQUESTS), workers, connections, apply_config
        )
        host = f"[{options.host}]" if ":" in options.host else options.host
        server, self.grpc_port = await api.serve(f"{host}:{options.grpc_port}", options.max_bytes, options.header_s)
        return server, asyncio.create_task(connections.watch(self.grpc_port))

    def _intake(self, max_reading: int) -> Intake:
        return Intake(body_s=self.options.body_s, max_bytes=self.options.max_bytes, max_reading=max_reading)

    def _connections(self, maximum: int, name: str) -> ConnectionLimiter:
        return ConnectionLimiter(maximum, self.options.header_s, self.options.body_s, MAX_MODEL_CALL_S, name)

    def _run(self, name: str, work: Callable[[], object]) -> None:
        thread = threading.Thread(target=work, name=name, daemon=True)
        thread.start()
        self._threads.append(thread)

    def poll(self, wait: bool = True) -> None:
        """Read the configuration once, and load and unload accordingly. ``wait`` for the loads to end."""
        with self._reading:
            self._read_config()
        self.manager.step(wait)

    def _read_config(self) -> None:
        """Read the configuration once, and apply it if it or a registry has changed. Errors are logged, not raised."""
        try:
            text = self._config_store.read(self._config_name)
        except FileNotFoundError:
            text = None  # nothing was pushed yet, or it is being restored: keep serving
        except CimlError as error:
            _LOG.warning("%s", error)
            text = None
        if text is not None and text != self._config_text:
            self._config_text = text
            try:
                self._configured = tuple(parse_config(text.decode("utf-8", "replace")))
            except CimlError as error:
                self.metrics.config_error()
                _LOG.error("%s: %s; the served versions stay", self.options.config, error)
            else:
                self._apply_served()
        elif time.monotonic() >= self._check_at_s:
            self._apply_served(only_changed=True)

    def _apply_served(self, *, only_changed: bool = False) -> None:
        """Apply the configuration without the versions that the registries have withdrawn."""
        self._check_at_s = time.monotonic() + _REGISTRY_S
        entries = []
        for entry in self._configured:
            try:
                current = entry if self._verifier is None else self._verifier.current(entry)
            except CimlError as error:
                _LOG.warning("model %s: cannot read its registry: %s", entry.name, error)
                current = next((applied for applied in self._applied if applied.name == entry.name), entry)
            if current is not None:
                entries.append(current)
        if not only_changed or tuple(entries) != self._applied:
            self._applied = tuple(entries)
            self.manager.apply(entries)

    def _poll_forever(self) -> None:
        while not self._stop.is_set():
            try:
                self.poll(wait=False)
            except Exception:  # noqa: BLE001 - polling must not end
                _LOG.exception("polling the configuration failed; the served versions stay")
            self._stop.wait(self.options.poll_s)

    def _apply_config(self, entries: Iterable[ModelEntry]) -> None:
        entries = tuple(entries)
        with self._reading:
            self._configured = entries  # until the file changes
            self._apply_served()
        self.manager.step()
        for entry in entries:
            for status in self.manager.status(ModelChoice(entry.name)):
                if status.code != "OK":
                    raise EngineError(f"model {entry.name}: version {status.version} failed to load: {status.message}")

    def stop(self) -> None:
        """Answer pending requests, then stop."""
        self._stop.set()
        self._loop.call_soon_threadsafe(self._stopping.set)
        for thread in self._threads:
            thread.join(timeout=10)
        self.manager.close()

    def __enter__(self) -> ModelServer:
        self.start()
        self.manager.step()  # waits for the configured versions
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


def run(options: ServerOptions) -> None:
    """Run a server until SIGTERM or SIGINT. Print the ports as one line of JSON."""
    ended = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: ended.set())
    server = ModelServer(options)
    server.start()
    try:
        with serve_metrics(server.metrics.registry, options.metrics_port, options.metrics_address) as url:
            ready = {"grpc": server.grpc_port, "rest": server.rest_port, "pid": os.getpid()}
            sys.stdout.write(json.dumps({**ready, **({"metrics": url} if url else {})}) + "\n")
            sys.stdout.flush()
            ended.wait()
    finally:
        server.stop()
