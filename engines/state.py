"""The state of local engines: ``<home>/engines.json``, shared by `ciml up`, `status` and `down`."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import NamedTuple

from ciml.errors import CimlError, EngineError
from ciml.storage.json_files import read_json, write_json

REAL = "real"
LIGHT = "light"


class ProcessId(NamedTuple):
    """Identifies one process on this machine, even after its pid is reused.

    Attributes:
      pid: of the process.
      started: its start time, seconds since the epoch.
    """

    pid: int
    started: float

    @classmethod
    def of(cls, pid: int | None, started: float | None) -> ProcessId | None:
        """Return the process of a record; None if the record names none."""
        return None if pid is None or started is None else cls(pid, started)


@dataclass(frozen=True)
class EngineState:
    """A started engine.

    Attributes:
      name: of the engine, such as ``kafka``.
      kind: ``real``, or ``light`` for the stand-ins of a machine without Java.
      what: one phrase for people, such as ``Kafka 4.1.1`` or ``light: librdkafka mock broker``.
      address: for clients, ``host:port`` or a URL; "" while it is starting.
      pid, started: of its process, as in `ProcessId`; None if the engine needs none (bounded micro-batches).
      ports: every port it listens on, by use.
      urls: further addresses, by use.
      log: the file of its output.
      memory_mb: its memory limit in MiB, or None.
    """

    name: str
    kind: str
    what: str
    address: str = ""
    pid: int | None = None
    started: float | None = None
    ports: dict[str, int] = field(default_factory=dict)
    urls: dict[str, str] = field(default_factory=dict)
    log: str | None = None
    memory_mb: int | None = None

    @property
    def light(self) -> bool:
        """Whether this is a stand-in."""
        return self.kind == LIGHT

    @property
    def process(self) -> ProcessId | None:
        """Its process; None if it needs none."""
        return ProcessId.of(self.pid, self.started)


def default_home() -> Path:
    """Return ``$CIML_HOME``, else ``.ciml`` in the working folder."""
    return Path(os.environ.get("CIML_HOME") or ".ciml").absolute()


def state_file(home: Path) -> Path:
    """Return the state file of ``home``."""
    return home / "engines.json"


def read(home: Path) -> dict[str, EngineState]:
    """Return the engines that were started in ``home`` and not stopped, by name; they may have died.

    Raises:
      EngineError: if the file is unreadable.
    """
    path = state_file(home)
    remedy = "stop the engines manually, then remove it"
    content = read_json(path, remedy, EngineError) or {}
    try:
        return {name: EngineState(name=name, **fields) for name, fields in content.items()}
    except TypeError as error:
        raise EngineError(f"{path} is unreadable ({error}); {remedy}") from error


def write(home: Path, states: Mapping[str, EngineState]) -> None:
    """Replace the file atomically."""
    content = {name: asdict(state) for name, state in sorted(states.items())}
    for fields in content.values():
        del fields["name"]
    write_json(state_file(home), content, 0o600)


@contextmanager
def exclusive(home: Path, timeout_s: float = 300) -> Iterator[None]:
    """Hold the lock of ``home``: one `ciml up` or `ciml down` at a time.

    Raises:
      CimlError: if another process holds it longer than ``timeout_s``, or ``home`` is not writable.
    """
    from filelock import FileLock, Timeout

    try:
        home.mkdir(parents=True, exist_ok=True)
        with FileLock(home / "engines.lock", timeout=timeout_s):
            yield
    except Timeout:
        raise CimlError(f"another ciml is starting or stopping engines in {home}; retry when it is done") from None
    except PermissionError as error:
        raise CimlError(f"cannot write in {home}: {error.strerror}; choose another folder with --home") from error
