"""Verification of a raw manifest."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from ciml.manifest.log import ManifestLog
from ciml.manifest.verify import verify_log
from ciml.raw.state import RAW
from ciml.storage.open import Store


def verify_manifest(raw: Store, progress: Callable[[int, int], None] | None = None) -> Iterator[str]:
    """Yield the faults of the manifest of a raw store, one line each; see `ciml.manifest.verify.verify_log`."""
    yield from (fault.text for fault in verify_log(ManifestLog(raw), RAW, progress) if fault.what != "older")
