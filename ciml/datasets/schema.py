"""The schema of a data set's examples."""

from __future__ import annotations

from collections.abc import Sequence

import pyarrow as pa

from ciml.datasets.definition import FACT_COLUMNS, ResolvedDefinition

TIME = pa.timestamp("us", tz="UTC")


def schema_of(resolved: ResolvedDefinition) -> pa.Schema:
    """Return the schema of a data set's examples: metadata, then each feature as fixed_size_list<float32>[L]."""
    return example_schema(resolved.features, resolved.windows)


def example_schema(features: Sequence[str], windows: int) -> pa.Schema:
    """Return `schema_of` from the names of the features and L."""
    text = pa.string()
    vector = pa.list_(pa.field("element", pa.float32(), nullable=False), windows)
    fields = [
        *((name, text) for name in ("run_id", "build_uuid", "build_name")),
        ("label", pa.int64()),
        ("label_name", text),
        ("split", text),
        ("n_windows", pa.int32()),
        ("digest", text),
        *((name, text) for name in FACT_COLUMNS),
    ]
    optional = [("start_time", TIME), ("end_time", TIME)]
    return pa.schema(
        [
            *(pa.field(name, kind, nullable=False) for name, kind in fields),
            *(pa.field(name, kind) for name, kind in optional),
            pa.field("labels", pa.map_(text, text), nullable=False),
            *(pa.field(name, vector, nullable=False) for name in features),
        ]
    )
