"""The publisher: makes the next version of a Delta table from the state of the manifests."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ciml.storage.open import LocalStore, S3Store, Store
from ciml.tables.delta_log import FOLDER, DeltaLog, DeltaState
from ciml.tables.wanted import Wanted, changes, now_ms

#: A checkpoint is made after this many commits.
CHECKPOINT_EVERY = 10
#: Age of a half-written commit of a killed publisher at its removal, seconds.
_LEFTOVERS_S = 24 * 3600


@dataclass(frozen=True, slots=True)
class Published:
    """A table after its publication.

    Attributes:
      name: of the table.
      url: of its folder: what engines open.
      version: of the table, from 0.
      rows, files: that it has.
      added, removed: files, by this publication; both 0 where the table was up to date.
      committed: whether this publication made a version.
      notes: what is left out, a line each.
    """

    name: str
    url: str
    version: int
    rows: int
    files: int
    added: int
    removed: int
    committed: bool
    notes: Sequence[str] = ()


def publish(store: Store, compute: Callable[[DeltaState], Wanted], clock_ms: Callable[[], int] = now_ms) -> Published:
    """Commit the version of a table that its manifests want, unless it is the present one.

    May be killed at any line, and run by any number of processes: each version is computed from the state of the
    manifests after the version before it was read, so no version undoes a newer one.

    Args:
      store: the table's folder.
      compute: returns the content that the table should have, given the table's present state.
      clock_ms: epoch milliseconds.

    Raises:
      EngineError: the store does not answer.
      IntegrityError: a manifest, or the table's log, is damaged.
    """
    log = DeltaLog(store)
    while True:
        state = log.read()
        wanted = compute(state)
        actions = changes(state, wanted, clock_ms())
        if not actions or log.try_commit(state.version + 1, actions):
            break
    for action in actions:
        for kind, value in action.items():
            state.apply(kind, value)
    notes = list(wanted.notes)
    if actions:
        state.version += 1
        if state.version and state.version % CHECKPOINT_EVERY == 0:
            store.delete_leftovers(FOLDER, clock_ms() / 1000 - _LEFTOVERS_S)
            if failed := make_checkpoint(store):
                notes.append(failed)
    added, removed = (sum(kind in action for action in actions) for kind in ("add", "remove"))
    return Published(
        wanted.name, store.url(), state.version, state.rows, len(state.files), added, removed, bool(actions), notes
    )


def make_checkpoint(store: Store) -> str:
    """Make a checkpoint of a table, and delete expired commits before it. Return "", or why it failed.

    Without checkpoints a table is complete, but takes longer to open.
    """
    from deltalake import DeltaTable
    from deltalake.exceptions import DeltaError

    try:
        table = DeltaTable(store.root, storage_options=storage_options(store))
        table.create_checkpoint()
        table.cleanup_metadata()
    except (DeltaError, OSError) as error:
        return f"{store.url()}: no checkpoint: {' '.join(str(error).split()):.200}"
    return ""


def storage_options(store: Store) -> dict[str, str]:
    """Return what deltalake needs to open a store, credentials included."""
    if isinstance(store, LocalStore):
        return {}
    if not isinstance(store, S3Store):
        raise TypeError(f"{store!r} is neither a folder nor on S3")
    settings = store.settings()
    return {**settings, "aws_allow_http": "true"} if settings.get("aws_endpoint", "").startswith("http:") else settings
