"""Reads a data set as anyone may who has pyarrow (or pandas): sealed spans are plain Parquet, named by a manifest.

    python examples/read_a_data_set.py DATA NAME

What a folder holds is not the data set; what its manifest names is. So this reads the manifest, in order, and keeps for
each span its last version.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq


def read(folder: Path) -> dict[str, pa.Table]:
    """The examples by split. For pandas: ``read(folder)["train"].to_pandas()``."""
    spans: dict[int, dict] = {}
    for path in sorted((folder / "_manifest").glob("*.json")):
        for span in json.loads(path.read_bytes()).get("spans", ()):
            spans[span["span"]] = span  # a later delta has a later version of the span
    files: dict[str, list[pa.Table]] = {}
    for _, span in sorted(spans.items()):
        for split, parts in span["files"].items():
            files.setdefault(split, []).extend(pq.read_table(folder / part["path"]) for part in parts)
    return {split: pa.concat_tables(tables) for split, tables in files.items()}


def main(data: str, name: str) -> None:
    tables = read(Path(data, "datasets", name))
    if not tables:
        raise SystemExit(f"{name} has no sealed span yet: ciml dataset update {name} --data-path {data}")
    for split, table in sorted(tables.items()):
        counts = table.group_by("label_name").aggregate([("run_id", "count")]).sort_by("label_name").to_pylist()
        told = ", ".join(f"{row['run_id_count']} {row['label_name']}" for row in counts)
        print(f"{split}: {table.num_rows} examples ({told})")
    table = next(iter(tables.values()))
    features = [field.name for field in table.schema if pa.types.is_fixed_size_list(field.type)]
    first = table.slice(0, 1).to_pylist()[0]
    print(f"{first['run_id']}: {first['label_name']}, {first['n_windows']} of {len(first[features[0]])} windows")
    for feature in features:
        print(f"  {feature:<16} {' '.join(f'{value:.6g}' for value in first[feature][: first['n_windows']][:5])}")


if __name__ == "__main__":
    if len(sys.argv) != 3:
        raise SystemExit(__doc__)
    main(*sys.argv[1:])
