"""The faults of a raw manifest, as text."""

from __future__ import annotations

from collections.abc import Iterator

from ciml.manifest.log import ManifestLog
from ciml.manifest.verify import verify_log
from ciml.raw.state import RAW
from ciml.storage.open import Store


def verify_manifest(raw: Store) -> Iterator[str]:
    """Yield a line for each fault of the manifest of a raw store."""
    yield from (fault.text for fault in verify_log(ManifestLog(raw), RAW) if fault.what != "older")
