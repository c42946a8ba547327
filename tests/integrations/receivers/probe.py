"""An adapter that another package brings, for tests of receivers: its deliveries name their run themselves."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ciml.errors import RejectedInput
from ciml.integrations import registry
from ciml.integrations.adapter import Adapter, Delivery, Ignored, Reading, Run

EVENT = "x-probe-event"


def read(delivery: Delivery) -> Reading | Ignored:
    """Read ``{"id": …, "run": {…}}``."""
    if delivery.headers.get(EVENT) == "ping":
        return Ignored(delivery.id or "ping", "ping", "a ping only tests the webhook")
    body = delivery.json()
    if type(body.get("run")) is not dict:
        raise RejectedInput("missing_field", "run")
    return Reading(str(body.get("id", "")), "run", None, (Run("finished", body["run"]),))


ADAPTER = Adapter("probe", (EVENT,), read, signature="github")


def install(folder: Path) -> Path:
    """Install the adapter as a package in a folder; return the folder, for ``PYTHONPATH``."""
    info = folder / "probe_adapter-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: probe-adapter\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[{registry.GROUP}]\nprobe = {__name__}:ADAPTER\n")
    return folder


@contextmanager
def installed(folder: Path) -> Iterator[Path]:
    """The adapter installed for this process."""
    sys.path.insert(0, str(install(folder)))
    importlib.invalidate_caches()
    registry.adapters.cache_clear()
    try:
        yield folder
    finally:
        sys.path.remove(str(folder))
        registry.adapters.cache_clear()
