"""OpenLineage events as objects of a store: whole or not at all, on a disk and on S3. Needs ``ciml[lineage]``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from openlineage.client.serde import Serde
from openlineage.client.transport.transport import Transport

if TYPE_CHECKING:
    from ciml.storage.open import Store


class StoreTransport(Transport):
    """Writes each event to ``<date>/<time>-<job>-<state>-<run id>.json``; sorted by name, they are in order of time.

    Args:
      store: the folder.
    """

    kind = "ciml"

    def __init__(self, store: Store) -> None:
        self._store = store

    def emit(self, event: Any) -> None:
        time = event.eventTime.replace("+00:00", "Z").replace(":", "")
        name = f"{time}-{event.job.name}-{event.eventType.value}-{event.run.runId}.json"
        self._store.create(f"{event.eventTime[:10]}/{name}", Serde.to_json(event).encode())
