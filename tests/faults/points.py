"""Points at which a process dies or freezes by its own hand: around each call that changes a store."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_LOCAL = ("link", "unlink", "replace", "fsync", "mkdir", "rmdir")
#: What a point's label begins with when it is about to make, or has just made, a delta of a raw manifest.
DELTA = "raw/_manifest/0"


@dataclass(frozen=True)
class Stop:
    """Where a process is to stop.

    Attributes:
      at: the number of the point, from 1; 0 for nowhere.
      of: counts only points whose label holds this.
      how: SIGKILL or SIGSTOP.
    """

    at: int = 0
    of: str = ""
    how: int = signal.SIGKILL


class Points:
    """Counts the points that this process comes to. From `install` on.

    Args:
      root: only calls below this folder or ``s3://`` prefix count (and every ``fsync``).
      stop: where to stop.
      seen: a file to which each point's label is written; None for none.
    """

    def __init__(self, root: str, stop: Stop, seen: Path | None = None) -> None:
        self._root, self._stop, self._seen = root, stop, seen
        self._lock = threading.Lock()
        self._count = 0
        self._out = seen.open("a", buffering=1) if seen else None

    def install(self) -> None:
        """Puts points around the calls of the local file system, or of S3."""
        if self._root.startswith("s3://"):
            self._install_s3()
        else:
            for name in _LOCAL:
                setattr(os, name, self._around(name, getattr(os, name)))

    def pass_by(self, label: str) -> None:
        """A point."""
        with self._lock:
            if self._out:
                self._out.write(label + "\n")
            if self._stop.of and self._stop.of not in label:
                return
            self._count += 1
            if self._count == self._stop.at:
                os.kill(os.getpid(), self._stop.how)

    def _around(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*arguments: Any, **more: Any) -> Any:
            where = str(arguments[1] if name in ("link", "replace") else arguments[0])
            if name != "fsync" and not where.startswith(self._root):
                return call(*arguments, **more)
            label = f"{name} {where.removeprefix(self._root).lstrip('/')}"
            self.pass_by(f"before {label}")
            done = call(*arguments, **more)
            if name in ("link", "replace"):
                self.pass_by(f"after {label}")
            return done

        return wrapped

    def _install_s3(self) -> None:
        from botocore.client import BaseClient

        call = BaseClient._make_api_call

        def wrapped(client: Any, verb: str, arguments: dict[str, Any]) -> Any:
            label = f"{verb} {arguments.get('Key', arguments.get('Prefix', ''))}"
            changes = verb in ("PutObject", "DeleteObject")
            if changes:
                self.pass_by(f"before {label}")
            done = call(client, verb, arguments)
            if changes:
                self.pass_by(f"after {label}")
            return done

        BaseClient._make_api_call = wrapped
