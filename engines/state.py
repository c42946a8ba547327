"""What runs, and where: ``<home>/engines.json``, the one file that `ciml up`, `status` and `down` share."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from ciml.errors import CimlError, EngineError

REAL = "real"
LIGHT = "light"


@dataclass(frozen=True)
class EngineState:
    """One engine that was started here.

    Attributes:
      name: ``kafka``, ``flink``, ``s3``, ``logs`` or ``models``.
      kind: ``real``, or ``light`` for the stand-ins of a machine without Java.
      what: one phrase for people, such as ``Kafka 4.1.1`` or ``light: librdkafka mock broker``.
      address: what clients are given: ``host:port`` or a URL; empty while it is starting.
      pid: the process, or None where the engine needs none (bounded micro-batches).
      started: that process's start time in seconds since the epoch; with the pid it names one process for ever.
      ports: every port it listens on, by its use.
      urls: further addresses, by their use.
      log: the file its output goes to.
      memory_mb: the cap it was given, in MiB; None where it has none.
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

    def at(self, **changes: Any) -> EngineState:
        """This state with some fields changed."""
        return replace(self, **changes)


def default_home() -> Path:
    """``$CIML_HOME``, else ``.ciml`` in the working folder."""
    return Path(os.environ.get("CIML_HOME") or ".ciml").absolute()


def state_file(home: Path) -> Path:
    """Where the engines of ``home`` are written down."""
    return home / "engines.json"


def read(home: Path) -> dict[str, EngineState]:
    """Return the engines that were started in ``home`` and not ended since, by name; they may have died meanwhile.

    Raises:
      EngineError: when the file is there and cannot be understood.
    """
    path = state_file(home)
    try:
        content = json.loads(path.read_bytes())
        return {name: EngineState(name=name, **fields) for name, fields in content.items()}
    except FileNotFoundError:
        return {}
    except (ValueError, TypeError, AttributeError) as error:
        raise EngineError(f"{path} cannot be understood ({error}); end the engines by hand, then remove it") from error


def write(home: Path, states: Mapping[str, EngineState]) -> None:
    """Replace the file whole: a reader sees the old content or the new."""
    import tempfile  # only who starts engines writes

    content = {name: {k: v for k, v in asdict(state).items() if k != "name"} for name, state in sorted(states.items())}
    home.mkdir(parents=True, exist_ok=True)
    handle, staged = tempfile.mkstemp(prefix=".engines-", dir=home)
    with os.fdopen(handle, "w") as out:
        json.dump(content, out, indent=2)
        out.write("\n")
    os.replace(staged, state_file(home))


@contextmanager
def exclusive(home: Path, timeout_s: float = 300) -> Iterator[None]:
    """Hold the lock of ``home``: one `ciml up` or `ciml down` at a time.

    Raises:
      CimlError: when another holds it for longer than ``timeout_s``, or ``home`` cannot be written.
    """
    from filelock import FileLock, Timeout

    try:
        home.mkdir(parents=True, exist_ok=True)
        with FileLock(home / "engines.lock", timeout=timeout_s):
            yield
    except Timeout:
        raise CimlError(f"another ciml is starting or ending engines in {home}; try again when it is done") from None
    except PermissionError as error:
        raise CimlError(f"cannot write in {home}: {error.strerror}; choose another folder with --home") from error
