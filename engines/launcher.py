"""Starts engines, waits until they are ready, and stops them."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import TracebackType

from ciml.engines import processes, state
from ciml.engines.base import Engine, Launch, Settings
from ciml.engines.flink.cluster import Cluster
from ciml.engines.flink.job_server import Flink, MicroBatches
from ciml.engines.jars import NoJava
from ciml.engines.kafka import Kafka, MockKafka
from ciml.engines.servers import S3, Gerrit, LogServer, ModelServer, Mosquitto
from ciml.engines.state import EngineState, ProcessId
from ciml.errors import CimlError, EngineError

_ALL = (Kafka(), Flink(), Cluster(), S3(), LogServer(), ModelServer(), Mosquitto(), Gerrit())
ENGINES: Mapping[str, Engine] = {entry.name: entry for entry in _ALL}
LIGHT_ENGINES: Mapping[str, Engine] = {entry.name: entry for entry in (MockKafka(), MicroBatches())}
_PORT_S = 5.0  # wait for a dead engine's port
_ATTEMPTS = 3  # each with other ports, if another process took a chosen one


@dataclass
class Engines:
    """Running engines. As a context manager, stops those that it started.

    A property for each engine gives its address, ``host:port`` or a URL, or raises `EngineError` if it does not run.
    ``flink`` is the ``host:port`` of its job server; ``cluster`` has ``jobs`` (``host:port`` of Beam's job server),
    ``rest`` (a URL) and ``workers``; ``models`` has ``grpc`` (``host:port``) and ``rest`` (a URL).

    Attributes:
      home: the folder of their files.
      states: of all engines running in ``home``, by name.
      started: seconds until ready, by name of the engines that this call started.
      notes: lines for people, such as the reason for a stand-in.
      reaper: the process that stops them after a kill of this one (`Settings.tied`).
    """

    home: Path
    states: dict[str, EngineState]
    started: dict[str, float] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    reaper: ProcessId | None = field(default=None, repr=False)

    @property
    def kafka(self) -> str:
        return self._address("kafka")

    @property
    def flink(self) -> str:
        return self._address("flink")

    @property
    def s3(self) -> str:
        return self._address("s3")

    @property
    def logs(self) -> str:
        return self._address("logs")

    @property
    def mosquitto(self) -> str:
        return self._address("mosquitto")

    @property
    def gerrit(self) -> str:
        return self._address("gerrit")

    @property
    def cluster(self) -> dict[str, str]:
        return dict(self.state_of("cluster").urls)

    @property
    def models(self) -> dict[str, str]:
        return dict(self.state_of("models").urls)

    def _address(self, name: str) -> str:
        engine = self.state_of(name)
        if not engine.address:  # the stand-in for Flink has none
            raise EngineError(f"Flink is not available ({engine.what}); use --engine micro-batches")
        return engine.address

    def state_of(self, name: str) -> EngineState:
        """Return the state of a running engine."""
        if name not in self.states:
            raise EngineError(f"{name} is not running in {self.home}; start it with: ciml up {name}")
        return self.states[name]

    @property
    def light(self) -> bool:
        """Whether any engine is a stand-in."""
        return any(engine.light for engine in self.states.values())

    def stop(self, names: Iterable[str] | None = None) -> list[str]:
        """Stop engines, by default those that this object started; return the names of those that ran."""
        ended = stop(self.started if names is None else names, self.home)
        self.states = {name: engine for name, engine in self.states.items() if name not in ended}
        return ended

    def __enter__(self) -> Engines:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()
        if self.reaper is not None:
            processes.end(self.reaper)


def start(names: Iterable[str], home: Path | str | None = None, settings: Settings | None = None) -> Engines:
    """Start engines concurrently and wait until each answers. Engines running in ``home`` are reused.

    Args:
      names: any of ``kafka``, ``flink``, ``cluster``, ``s3``, ``logs``, ``models``, ``mosquitto``, ``gerrit``.
      home: the folder of their files; by default ``$CIML_HOME`` or ``.ciml``.
      settings: ports, memory, folders.

    Returns:
      All engines running in ``home``.

    Raises:
      CimlError: for an unknown name or a missing setting.
      EngineError: if one does not start; engines started by this call are stopped first.
    """
    selected = list(dict.fromkeys(names))
    unknown = [name for name in selected if name not in ENGINES]
    if unknown:
        raise CimlError(f"unknown engine {', '.join(unknown)}; choose from {', '.join(ENGINES)}")
    folder = Path(home).absolute() if home is not None else state.default_home()
    chosen = settings or Settings()
    with state.exclusive(folder):
        recorded_states = state.read(folder)
        running = {name: entry for name, entry in recorded_states.items() if alive(entry)}
        # Entries of dead engines are kept, since they hold the ports that clients know.
        recorded = _RecordedStates(folder, recorded_states)
        engines = Engines(folder, running)
        starters = [_Starter(ENGINES[name], folder, chosen, recorded) for name in selected if name not in running]
        if chosen.tied and starters:
            engines.reaper = _start_reaper(folder, [starter.name for starter in starters])
        with ThreadPoolExecutor(max_workers=max(1, len(starters))) as pool:
            results = [pool.submit(starter.run) for starter in starters]
            failures = [error for error in (result.exception() for result in results) if error is not None]
        if failures:
            for starter in starters:
                starter.undo()
            if engines.reaper is not None:
                processes.end(engines.reaper)
            raise failures[0]
        for starter in starters:
            engines.started[starter.name] = starter.seconds
            engines.notes += starter.notes
        engines.states = {name: entry for name, entry in recorded.states.items() if alive(entry)}
    return engines


def stop(names: Iterable[str] | None = None, home: Path | str | None = None) -> list[str]:
    """Stop engines of ``home``, all by default, and remove their entries.

    Returns:
      The names of those that were running.

    Raises:
      EngineError: if one does not stop.
    """
    folder = Path(home).absolute() if home is not None else state.default_home()
    with state.exclusive(folder):
        recorded = state.read(folder)
        chosen = [name for name in recorded if names is None or name in set(names)]
        with ThreadPoolExecutor(max_workers=max(1, len(chosen))) as pool:
            results = {name: pool.submit(engine_of(recorded[name]).end, folder, recorded[name]) for name in chosen}
        stopped = {name for name, result in results.items() if result.exception() is None}
        state.write(folder, {name: entry for name, entry in recorded.items() if name not in stopped})
        for result in results.values():
            result.result()  # raises the first failure, after the state file is written
        return [name for name in chosen if results[name].result() or recorded[name].pid is None]


def engine_of(entry: EngineState) -> Engine:
    """Return the engine of a state."""
    return (LIGHT_ENGINES if entry.light else ENGINES)[entry.name]


def alive(entry: EngineState) -> bool:
    """Return whether the engine's process runs; an engine without a process always counts as running."""
    return entry.process is None or processes.find(entry.process) is not None


def _start_reaper(home: Path, names: list[str]) -> ProcessId:
    me = os.getpid()
    arguments = (str(me), repr(processes.start_time(me)), str(home), *names)
    command = processes.python_command("ciml.engines.programs", "stop-with-parent", *arguments)
    return processes.spawn(command, home / "logs" / "stop-with-parent.log", {}, home)


class _RecordedStates:
    """The recorded states of a home, which several threads change."""

    def __init__(self, home: Path, states: dict[str, EngineState]) -> None:
        self._home = home
        self._lock = threading.Lock()
        self.states = dict(states)

    def put(self, name: str, entry: EngineState | None) -> None:
        with self._lock:
            self.states.pop(name, None)
            if entry is not None:
                self.states[name] = entry
            state.write(self._home, self.states)


class _Starter:
    """Starts one engine in a thread. After a crash it reuses the previous ports."""

    def __init__(self, engine: Engine, home: Path, settings: Settings, recorded: _RecordedStates) -> None:
        self._engine = engine
        self._home = home
        self._settings = settings
        self._recorded = recorded
        self.name = engine.name
        self._before = recorded.states.get(engine.name)
        self.seconds = 0.0
        self.notes: list[str] = []

    def run(self) -> None:
        start_s = time.monotonic()
        try:
            self._start()
        except NoJava as error:
            if self.name not in LIGHT_ENGINES:
                raise
            self._engine = LIGHT_ENGINES[self.name]
            self._start()
            self.notes.append(f"{error}: {self._recorded.states[self.name].what} replaces {self.name}")
        self.seconds = time.monotonic() - start_s

    def undo(self) -> None:
        started = self._recorded.states.get(self.name)
        if started is not None:
            self._engine.end(self._home, started)
            self._recorded.put(self.name, self._before)

    def _start(self) -> None:
        fixed = {use: port for use, port in self._settings.ports.items() if use in self._engine.uses}
        for use, port in fixed.items():
            if not processes.bindable(port):
                raise EngineError(f"port {port} for {use} is in use by another program")
        old_ports = self._before.ports if self._before is not None else {}
        reused = {  # the previous process may hold its ports for a moment
            use: port for use, port in old_ports.items() if use not in fixed and processes.becomes_free(port, _PORT_S)
        }
        for attempt in range(_ATTEMPTS):
            new_ports = iter(processes.lasting_ports(len(self._engine.uses)))
            ports = {use: fixed.get(use) or reused.get(use) or next(new_ports) for use in self._engine.uses}
            launch = self._engine.prepare(self._home, ports, self._settings)
            try:
                self._launch(launch)
                break
            except _PortInUse:
                reused = {}
                if attempt + 1 == _ATTEMPTS:
                    raise
        self._note_other_port(fixed)

    def _note_other_port(self, fixed: Mapping[str, int]) -> None:
        """Note that the address which clients know has changed, unless the caller fixed the port."""
        before = self._before
        now = self._recorded.states[self.name]
        if before is None or before.light or now.light:
            return
        for use, port in before.ports.items():
            is_known = str(port) in before.address  # to clients
            if is_known and use not in fixed and now.ports.get(use, port) != port:
                self.notes.append(
                    f"{self.name}: port {port}, used before, is in use by another program; it listens at "
                    f"{now.address}. Give clients this address, or free the port and run: ciml down {self.name}; "
                    f"ciml up {self.name} --port {use}={port}"
                )

    def _launch(self, launch: Launch) -> None:
        """Start the engine's process, and wait until it is ready.

        Raises:
          _PortInUse: if another process took one of its ports.
          EngineError: if it ends during its start, or is not ready in time.
        """
        log = self._home / "logs" / f"{self.name}.log"
        if launch.command is None:
            self._recorded.put(self.name, self._engine.state_of(launch))
            return
        with contextlib.suppress(FileNotFoundError):
            os.replace(log, log.with_suffix(".log.1"))  # keep only the last log
        process = processes.spawn(launch.command, log, launch.environment, self._home)
        launched = replace(self._engine.state_of(launch), pid=process.pid, started=process.started, log=str(log))
        self._recorded.put(self.name, launched)  # recorded before it is ready, so that `ciml down` always finds it
        deadline = time.monotonic() + self._settings.timeout_s
        while True:
            if processes.find(process) is None:
                self.undo()  # a cluster's watchdog may have left parts
                if processes.reports_port_in_use(log):
                    raise _PortInUse(f"{self.name}: a port of {launched.ports} is in use; see {log}")
                raise EngineError(f"{self.name} exited during its start: {processes.last_lines(log)} (log: {log})")
            answered = self._engine.ready(self._home, launched)
            # A foreign server may answer on the port while this one fails because of it.
            if answered is not None and processes.find(process) is not None:
                self._recorded.put(self.name, answered)
                return
            if time.monotonic() > deadline:
                missing = self._engine.missing(self._home, launched)
                self.undo()
                raise EngineError(
                    f"{self.name} is not ready after {self._settings.timeout_s:g} s"
                    + (f": {missing}" if missing else f" (log: {log})")
                )
            time.sleep(0.05)


class _PortInUse(EngineError):
    """Another process took a port of the engine."""
