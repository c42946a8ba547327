"""I1 for data sets: each accepted run is one example of each data set that selects it; read plainly."""

from __future__ import annotations

import fnmatch
import io
import json
from collections import Counter
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from ciml.data_root import DataRoot
from ciml.datasets.definition import ResolvedDefinition
from ciml.digest import row_digest
from ciml.errors import CimlError
from ciml.transforms.examples.prepare import prepare_many
from tests.faults.direct import table_of
from tests.faults.judge import MOST
from tests.faults.oracle import Objects
from tests.faults.plan import Claim

#: name: (jobs, definition). Two that share runs, so that one run is an example of both.
DEFINITIONS = {
    "all-status": (
        "*",
        'build_name = "all"\nclass_label = "status"\nclasses = ["passed", "failed"]\nspan_runs = 100\n',
    ),
    "numpy-provider": (
        "numpy-*",
        'build_name = "numpy-*"\nclass_label = "provider"\nsample_interval = "1s"\naggregation_functions = '
        '["mean", "max"]\nspan_runs = 60\n',
    ),
}
_BATCH = 500
_STATUS = {"success": "passed", "failure": "failed", "timeout": "failed"}


def update(data: str, folder: Path, names: Collection[str] = DEFINITIONS) -> list[str]:
    """Creates the data sets of these names and seals everything that the raw manifest has."""
    from ciml.datasets.definition import DatasetDefinition
    from ciml.pipelines.datasets.update import create_dataset, update_dataset

    try:
        for name, (_, text) in DEFINITIONS.items():
            if name not in names:
                continue
            definition = folder / f"{name}.toml"
            definition.write_text(text)
            create_dataset(DataRoot.open(data), DatasetDefinition.load(definition, name=name))
            update_dataset(DataRoot.open(data).dataset(name), seal=True)
    except CimlError as error:
        return [f"I1: a data set: {error}"]
    return []


def check(
    data: Objects, runs: Mapping[str, Claim], outcomes: Mapping[str, str], *, odd: bool = False,
    names: Collection[str] = DEFINITIONS,
) -> list[str]:  # fmt: skip
    """Compares each data set with the accepted runs.

    Args:
      data: the data root.
      runs: all accepted runs.
      outcomes: of each, with its corrections.
      odd: whether runs may be excluded, because their telemetry has not the usual columns.
      names: of the data sets that there are.
    """
    wrong: list[str] = []
    for name, (glob, _) in DEFINITIONS.items():
        selected = {run_id: claim for run_id, claim in runs.items() if fnmatch.fnmatch(claim.job, glob)}
        if selected and name in names:
            wrong += [f"I1: {name}: {line}" for line in _check(data, name, selected, outcomes, odd)][:MOST]
    return wrong


def _check(
    data: Objects, name: str, selected: Mapping[str, Claim], outcomes: Mapping[str, str], odd: bool
) -> list[str]:
    latest, resolved = _read(data, name)
    examples = [run for span in latest for run in span["runs"]]
    excluded = [run for span in latest for run in span["excluded"]]
    count = Counter(run["run_id"] for run in (*examples, *excluded))
    wrong = [f"{run_id} stands in it {count[run_id]} times" for run_id in selected if count[run_id] != 1]
    wrong += [f"{run_id} is in it, and is no accepted run that it selects" for run_id in count.keys() - selected.keys()]
    if not odd:
        wrong += [f"{run['run_id']} is excluded: {run['reason']}" for run in excluded]
    rows: Counter[str] = Counter()
    for file in (file for span in latest for files in span["files"].values() for file in files):
        content = data.read(f"datasets/{name}/{file['path']}")
        if content is None:
            wrong.append(f"{file['path']} is not there")
            continue
        table = pq.ParquetFile(io.BytesIO(content)).read()
        if table.num_rows != file["rows"]:
            wrong.append(f"{file['path']} has {table.num_rows} rows, not {file['rows']}")
        rows.update(table.column("run_id").to_pylist())
    if rows != Counter(run["run_id"] for run in examples):
        wrong.append("the rows of its files are not those of its manifest")
    if name == "all-status":
        for run in examples:
            if run["label_name"] != _STATUS.get(outcomes.get(run["run_id"], "")):
                wrong.append(
                    f"{run['run_id']} has the label {run['label_name']}, its run {outcomes.get(run['run_id'])}"
                )
    if resolved is not None:
        wrong += _equal(examples, selected, ResolvedDefinition.from_json(resolved))
    return wrong


def _read(data: Objects, name: str) -> tuple[list[dict[str, Any]], dict[str, Any] | None]:
    """The last version of each span, and what the definition resolved to."""
    latest: dict[int, dict[str, Any]] = {}
    resolved, version = None, 1
    while (text := data.read(f"datasets/{name}/_manifest/{version:012d}.json")) is not None:
        delta = json.loads(text)
        resolved = delta.get("resolved", resolved)
        latest.update((span["span"], span) for span in delta.get("spans", ()))
        version += 1
    return list(latest.values()), resolved


def _equal(examples: list[dict[str, Any]], selected: Mapping[str, Claim], resolved: ResolvedDefinition) -> list[str]:
    """Each example's digest is that of the direct computation on its log (where there is one log for the run)."""
    known = [run for run in examples if run["run_id"] in selected and len(selected[run["run_id"]].logs) == 1]
    wrong: list[str] = []
    for at in range(0, len(known), _BATCH):
        part = known[at : at + _BATCH]
        claims = [selected[run["run_id"]] for run in part]
        tables = [table_of(claim.logs[0], claim.start_us, claim.end_us) for claim in claims]
        inputs, windows, _ = prepare_many(tables, resolved)
        wrong += [
            f"{run['run_id']}: the example is not that of the direct computation"
            for run, values, count in zip(part, inputs, windows.tolist(), strict=True)
            if row_digest(run["run_id"], values.T.copy(), resolved.features, count) != run["digest"]
        ]
    return wrong
