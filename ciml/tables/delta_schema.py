"""The schema of a Delta table, from Arrow's: names and types of its columns."""

from __future__ import annotations

import json
from collections.abc import Container, Iterable, Mapping
from typing import TYPE_CHECKING, Any

from ciml.digest import canonical_json

if TYPE_CHECKING:
    import pyarrow as pa

#: The types of a table's columns as Delta writes them, by name, in order.
Fields = Mapping[str, Any]
#: The key in a column's metadata that marks one that no trusted run has.
_UNTRUSTED = "ciml.untrusted"


def delta_fields(schema: pa.Schema) -> dict[str, Any]:
    """Return the columns of an Arrow schema. Raises `TypeError` for a type that no stored file has."""
    return {each.name: _type(each.type) for each in schema}


def encode_fields(fields: Fields, untrusted: Container[str] = ()) -> str:
    """Return the schema of a table as Delta writes it, JSON. Every column may hold nulls.

    Args:
      fields: the columns.
      untrusted: those that no trusted run has. Their metadata says so.
    """
    listed = [
        {"name": name, "type": kind, "nullable": True, "metadata": {_UNTRUSTED: True} if name in untrusted else {}}
        for name, kind in fields.items()
    ]
    return canonical_json({"type": "struct", "fields": listed}).decode()


def decode_fields(text: str) -> dict[str, Any]:
    """Return the inverse of `encode_fields`."""
    return {each["name"]: each["type"] for each in json.loads(text)["fields"]}


def decode_untrusted(text: str) -> set[str]:
    """Return the columns that `encode_fields` marked as untrusted."""
    return {each["name"] for each in json.loads(text)["fields"] if (each.get("metadata") or {}).get(_UNTRUSTED)}


def _type(kind: pa.DataType) -> Any:
    import pyarrow as pa

    names = {
        pa.string(): "string",
        pa.bool_(): "boolean",
        pa.int32(): "integer",
        pa.int64(): "long",
        pa.float32(): "float",
        pa.float64(): "double",
        pa.date32(): "date",
        pa.timestamp("us", tz="UTC"): "timestamp",
    }
    if kind in names:
        return names[kind]
    if pa.types.is_fixed_size_list(kind) or pa.types.is_list(kind):
        return {"type": "array", "elementType": _type(kind.value_type), "containsNull": kind.value_field.nullable}
    if pa.types.is_map(kind):
        values = {"valueType": _type(kind.item_type), "valueContainsNull": kind.item_field.nullable}
        return {"type": "map", "keyType": _type(kind.key_type), **values}
    raise TypeError(f"no Delta type for {kind}")


def without_case_twins(names: Iterable[str]) -> tuple[list[str], list[str]]:
    """Divide names into those that differ in more than upper and lower case, and later twins of these.

    Delta, Spark and DuckDB take such names for the same column.
    """
    kept: dict[str, str] = {}
    twins = [name for name in names if kept.setdefault(name.lower(), name) != name]
    return list(kept.values()), twins
