"""The faults of a raw manifest, as text, and faults that digests do not reveal."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from ciml.manifest.log import Delta, ManifestLog
from ciml.manifest.verify import verify_log
from ciml.runs.state import RAW
from ciml.storage import Store


def verify_manifest(raw: Store) -> Iterator[str]:
    """Yield a line for each fault of the manifest of a raw store."""
    yield from (fault.text for fault in verify_log(ManifestLog(raw), RAW) if fault.kind not in ("older", "unsealed"))


def forge(store: Store, version: int, change: Callable[[Delta], object]) -> None:
    """Change a delta so that digests do not reveal it: it and the later ones are sealed again."""
    log = ManifestLog(store)
    deltas = list(ManifestLog(store).since(version - 1))
    for number, delta in deltas:
        store.delete(log.path(number))
        if number == version:
            change(delta)
        assert log.try_append(number, delta)
