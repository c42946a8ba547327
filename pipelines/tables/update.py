"""Publish tables after a change, where they are in use."""

from __future__ import annotations

from collections.abc import Iterable

from ciml.data_root import DataRoot
from ciml.extras import is_installed
from ciml.tables.places import in_use


def update_tables(data: DataRoot, names: Iterable[str]) -> list[str]:
    """Publish tables after a change, where the tables of the data root are in use and the extra is installed.

    Returns:
      What failed or was left out, a line each. Nothing is raised: the change itself is complete.
    """
    try:
        due = [name for name in names if in_use(data, name)]
        if not due or not is_installed("deltalake"):
            return []
        from ciml.pipelines.tables.publish import publish_tables

        return [f"{done.name}: {note}" for done in publish_tables(data, due) for note in done.notes]
    except Exception as error:  # noqa: BLE001 - the tables are a copy of what is stored: the next call publishes it
        return [f"tables not published: {error}; retry: ciml tables publish"]
