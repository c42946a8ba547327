"""I1 for data sets: each accepted run is one example of each data set that selects it; read plainly."""

from __future__ import annotations

import fnmatch
import io
import json
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from typing import Any

import pyarrow.parquet as pq

from ciml.data_root import DataRoot
from ciml.datasets.definition import DatasetDefinition, ResolvedDefinition
from ciml.digest import row_digest
from ciml.errors import CimlError
from ciml.pipelines.datasets.update import create_dataset, update_dataset
from ciml.transforms.examples.prepare import prepare_many
from tests.faults.oracle import Objects, few, table_of
from tests.faults.plan import PROVIDERS, Claim

#: Two data sets that share runs, so that one run is an example of both.
DEFINITIONS: dict[str, dict[str, Any]] = {
    "all-status": {"build_name": "all", "class_label": "status", "classes": ["passed", "failed"], "span_runs": 100},
    "numpy-provider": {  # with all classes: the first span may lack one, whose runs later spans would exclude
        "build_name": "numpy-*", "class_label": "provider", "classes": PROVIDERS, "sample_interval": "1s",
        "aggregation_functions": ["mean", "max"], "span_runs": 60,
    },
}  # fmt: skip
_BATCH = 500
_STATUS = {"success": "passed", "failure": "failed", "timeout": "failed"}


def update(data: str, names: Collection[str] = DEFINITIONS) -> list[str]:
    """Create the data sets of these names and seal everything that the raw manifest has; return what fails."""
    try:
        for name in names:
            create_dataset(DataRoot.open(data), DatasetDefinition.from_json({"name": name, **DEFINITIONS[name]}))
            update_dataset(DataRoot.open(data).dataset(name), seal=True)
    except CimlError as error:
        return [f"I1: a data set: {error}"]
    return []


def check(
    data: Objects, runs: Mapping[str, Claim], outcomes: Mapping[str, str], *, odd: bool = False,
    names: Collection[str] = DEFINITIONS,
) -> list[str]:  # fmt: skip
    """Compare each data set with the accepted runs.

    Args:
      data: the data root.
      runs: all accepted runs.
      outcomes: of each, with its corrections.
      odd: whether runs may be excluded, because their telemetry lacks the usual columns.
      names: of the data sets.
    """
    wrong: list[str] = []
    for name in names:
        glob = DEFINITIONS[name]["build_name"].replace("all", "*")
        selected = {run_id: claim for run_id, claim in runs.items() if fnmatch.fnmatch(claim.job, glob)}
        if selected:
            wrong += few(f"I1: {name}: {line}" for line in _check(data, name, selected, outcomes, odd))
    return wrong


def _check(
    data: Objects, name: str, selected: Mapping[str, Claim], outcomes: Mapping[str, str], odd: bool
) -> Iterator[str]:
    latest: dict[int, dict[str, Any]] = {}  # the last version of each span
    resolved, version = None, 1
    while (text := data.read(f"datasets/{name}/_manifest/{version:012d}.json")) is not None:
        delta = json.loads(text)
        resolved = delta.get("resolved", resolved)
        latest.update((span["span"], span) for span in delta.get("spans", ()))
        version += 1
    examples = [run for span in latest.values() for run in span["runs"]]
    excluded = [run for span in latest.values() for run in span["excluded"]]
    count = Counter(run["run_id"] for run in (*examples, *excluded))
    for run_id in selected.keys() | count.keys():
        if count[run_id] != int(run_id in selected):
            yield f"{run_id} is in it {count[run_id]} times, want {int(run_id in selected)}"
    if excluded and not odd:
        yield f"excluded: {excluded[:3]}"
    rows: Counter[str] = Counter()
    for file in (file for span in latest.values() for files in span["files"].values() for file in files):
        content = data.read(f"datasets/{name}/{file['path']}")
        ids = pq.ParquetFile(io.BytesIO(content)).read().column("run_id").to_pylist() if content is not None else []
        if len(ids) != file["rows"]:
            yield f"{file['path']} has {len(ids)} rows, not {file['rows']}"
        rows.update(ids)
    if rows != Counter(run["run_id"] for run in examples):
        yield "the rows of its files are not those of its manifest"
    for run in examples if name == "all-status" else ():
        outcome = outcomes.get(run["run_id"], "")
        if run["label_name"] != _STATUS.get(outcome):
            yield f"{run['run_id']} has the label {run['label_name']}, its run {outcome}"
    if resolved is not None:
        yield from _equal(examples, selected, ResolvedDefinition.from_json(resolved))


def _equal(
    examples: list[dict[str, Any]], selected: Mapping[str, Claim], resolved: ResolvedDefinition
) -> Iterator[str]:
    """Compare each example's digest with the direct computation on its log (if there is one log for the run)."""
    known = [run for run in examples if run["run_id"] in selected and len(selected[run["run_id"]].logs) == 1]
    for at in range(0, len(known), _BATCH):
        part = known[at : at + _BATCH]
        claims = [selected[run["run_id"]] for run in part]
        tables = [table_of(claim.logs[0], claim.start_us, claim.end_us) for claim in claims]
        inputs, windows, _ = prepare_many(tables, resolved)
        for run, values, count in zip(part, inputs, windows.tolist(), strict=True):
            if row_digest(run["run_id"], values.T.copy(), resolved.features, count) != run["digest"]:
                yield f"{run['run_id']}: the example is not that of the direct computation"
