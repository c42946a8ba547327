"""Delta tables over the store's own Parquet files, for other engines: their logs, and the files that belong to each.

Pure functions compute the present files of a table from the manifests; `ciml.runs.tables.delta_log` commits the
difference. Nothing reads these tables to answer a question about runs: without them the store is complete. Garbage
collection asks which packs its readers may still read. The files of ``runs`` and ``dead_letters`` are made by
`ciml.runs.tables.row_tables`. Uses deltalake for checkpoints alone.
"""

from __future__ import annotations

from collections.abc import Iterable

from ciml.data_root import DataRoot
from ciml.extras import is_installed


def update_tables(data: DataRoot, names: Iterable[str]) -> list[str]:
    """Publish tables after a change, where the tables of the data root are in use and the extra is installed.

    Returns:
      A line for each failure or omission. Nothing is raised: the change itself is complete.
    """
    from ciml.runs.tables.delta_log import in_use

    try:
        due = [name for name in names if in_use(data, name)]
        if not due or not is_installed("deltalake"):
            return []
        from ciml.runs.tables.publish import publish_tables

        return [f"{table.name}: {note}" for table in publish_tables(data, due) for note in table.notes]
    except Exception as error:  # noqa: BLE001 - the tables are a copy of what is stored: the next call publishes it
        return [f"tables not published: {error}; retry: ciml tables publish"]
