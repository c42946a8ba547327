"""The table of a data set: the examples of the last version of each span."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ciml.data_root import StoredDataset
from ciml.datasets.state import DatasetState
from ciml.errors import IntegrityError
from ciml.tables.delta_log import DataFile, DeltaState
from ciml.tables.delta_schema import delta_fields, encode_fields, without_case_twins
from ciml.tables.places import table_name
from ciml.tables.wanted import Wanted

if TYPE_CHECKING:
    import pyarrow as pa

PARTITION = ("span",)


def wanted_dataset(dataset: StoredDataset, present: DatasetState, schema: pa.Schema, state: DeltaState) -> Wanted:
    """Return the content of a data set's table, whose folder is that of the data set.

    Args:
      dataset: the data set.
      present: its state, read after ``state``.
      schema: of its examples (`ciml.transforms.examples.prepare.schema_of`).
      state: the table's present state.

    Raises:
      IntegrityError: a file of the manifest does not exist.
    """
    named = {
        file.path: (span.span, file.rows) for span in present.latest() for each in span.files.values() for file in each
    }
    files: dict[str, DataFile | None] = {path: None for path in named if path in state.files}
    if missing := named.keys() - files.keys():
        for entry in dataset.store.entries():
            if entry.path in missing:
                span, rows = named[entry.path]
                partition = {"span": str(span)}
                files[entry.path] = DataFile(entry.path, entry.size, int(entry.modified_s * 1000), rows, partition)
    if lost := named.keys() - files.keys():
        raise IntegrityError(f"{dataset.store.url(min(lost))} is in the manifest but does not exist; restore a backup")
    fields = {**delta_fields(schema), "span": "integer"}
    names, twins = without_case_twins([*PARTITION, *fields])
    kept = {name: fields[name] for name in (*names[1:], *PARTITION)}
    notes = [f"column {name!r} is left out: it differs from another only in upper and lower case" for name in twins]
    return Wanted(table_name(dataset.name), encode_fields(kept), PARTITION, files, present.version, notes=notes)
