"""Checks of the demo: every number, recounted from the stored data."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ciml.cli.demo.accounts import made_check
from ciml.cli.demo.produce import Produced
from ciml.cli.demo.report.result import Check, ExclusionLine, Profile, SpanLine
from ciml.datasets.state import DatasetState
from ciml.events.records import Outcome
from ciml.storage import Store

if TYPE_CHECKING:
    import pyarrow as pa

    from ciml.training.data.snapshot import Snapshot

PROFILE_COLUMN = "total cpu usage:usr"
PROFILE_WINDOWS = 12
PROFILE_INTERVAL_S = 10


def read_raw(raw: Store, runs: Sequence[Outcome], named: set[str]) -> tuple[dict[str, pa.Table], Check]:
    """Read the telemetry of all raw rows, and check each object against the manifest.

    Args:
      raw: the raw store.
      runs: the raw rows.
      named: the paths in the manifest, including other logs of a run.
    """
    from ciml.digest import telemetry_digest
    from ciml.errors import IntegrityError
    from ciml.runs.reader import read_runs

    name = "every raw object is there with its rows and digest"
    files = [one.file for one in runs if one.file is not None]
    try:
        tables = read_runs(raw, files)
    except IntegrityError as error:
        return {}, made_check(name, [str(error)], "")
    wrong = [f"{one.run_id} has no raw object" for one in runs if one.file is None]
    for one, file, table in zip(runs, files, tables, strict=False):
        if telemetry_digest(one.run_id, table) != file.digest:
            wrong.append(f"{raw.url(file.path)} has another digest")
    wrong += [f"{raw.url(path)} is named by no manifest" for path in raw.list("runs") if path not in named]
    return {one.run_id: table for one, table in zip(runs, tables, strict=False)}, made_check(
        name, wrong, f"{len(files)} objects, {sum(file.size for file in files) / 1e6:.1f} MB"
    )


def check_raw(produced: Iterable[Produced], runs: Sequence[Outcome]) -> Check:
    """Check that each accepted run has exactly one raw row, with as many samples as its log."""
    rows = {line.run_id: line.rows for line in produced if line.kind == "run"}
    found = Counter(one.run_id for one in runs)
    wrong = [
        f"{run_id} has {found[run_id]} raw rows" for run_id in {**rows, **found} if found[run_id] != (run_id in rows)
    ]
    wrong += [
        f"{one.run_id} has {one.file.rows} samples, not {rows[one.run_id]}"
        for one in runs
        if one.file is not None and rows.get(one.run_id) not in (None, one.file.rows)
    ]
    return made_check("each accepted run is one raw row with all its samples", wrong, f"{len(rows)} runs")


def check_dataset(state: DatasetState, runs: Iterable[str]) -> Check:
    """Check that each raw row is exactly one example of the data set, or one exclusion with a reason."""
    name = state.definition.name if state.definition else "?"
    examples = Counter[str]()
    excluded = Counter[str]()
    wrong: list[str] = []
    for span in state.latest():
        examples.update(run.run_id for run in span.runs)
        excluded.update(one["run_id"] for one in span.excluded)
        wrong += [f"{one['run_id']} is excluded without a reason" for one in span.excluded if not one["reason"]]
    wanted = set(runs)
    for run_id in {**dict.fromkeys(wanted), **examples, **excluded}:
        if examples[run_id] + excluded[run_id] != (run_id in wanted):
            wrong.append(f"{run_id}: {examples[run_id]} examples, {excluded[run_id]} exclusions")
    right = f"{examples.total()} examples, {excluded.total()} exclusions"
    return made_check(f"each raw row is one example of {name} or excluded", wrong, right)


def check_snapshots(snapshots: Mapping[str, Snapshot], produced: Iterable[Produced]) -> Check:
    """Check that no snapshot holds an untrusted run, or a run on both sides of a split.

    Args:
      snapshots: by a name for people.
      produced: the producer's list, with the expected trust.
    """
    trusted = {line.run_id: line.trusted for line in produced if line.kind == "run"}
    wrong: list[str] = []
    for name, snapshot in snapshots.items():
        roles: dict[str, set[str]] = defaultdict(set)
        for run in snapshot.runs():
            roles[run.run_id].add(run.role)
        wrong += [f"{name} holds the untrusted {run_id}" for run_id in roles if not trusted.get(run_id)]
        wrong += [
            f"{name} holds {run_id} as {' and '.join(sorted(found))}"
            for run_id, found in roles.items()
            if len(found) > 1
        ]
    if not snapshots:
        wrong.append("there is no snapshot")
    untrusted = sum(found is False for found in trusted.values())
    return made_check(
        "no untrusted run in any snapshot", wrong, f"{len(snapshots)} snapshots, {untrusted} untrusted runs"
    )


def check_served(served: Mapping[str, Any], stable: Mapping[str, int | None]) -> Check:
    """Check that the model server serves the registry's stable version, by gRPC and by REST.

    Args:
      served: model -> the reported versions, such as ``{"gRPC": 2, "REST": 2}``.
      stable: model -> the registry's champion.
    """
    wrong = [
        f"{model}: {way} serves {number}, not {stable[model]} as in the registry"
        for model, ways in served.items()
        for way, number in ways.items()
        if number is None or number != stable[model]
    ]
    wrong += [f"{model} is not served" for model in stable if model not in served]
    wrong += [] if stable else ["there is no champion"]
    right = ", ".join(f"{model} {number}" for model, number in stable.items())
    return made_check("the served versions are the registry's", wrong, right)


def check_probabilities(differences: Mapping[str, tuple[int, float]], limit: float = 1e-5) -> Check:
    """Check that the server, the Python API and the trainer give the same probabilities for the same runs.

    Args:
      differences: model -> (number of compared runs, largest difference of a probability).
      limit: largest allowed difference.
    """
    wrong = [f"{model}: {worst:.1e} apart" for model, (runs, worst) in differences.items() if not worst <= limit]
    wrong += [f"{model}: no run was compared" for model, (runs, _) in differences.items() if not runs]
    if not differences:
        wrong.append("no model was queried")
    right = ", ".join(f"{model}: {runs} runs, {worst:.0e}" for model, (runs, worst) in differences.items())
    return made_check("the server, the API and the trainer give the same probabilities", wrong, right)


def span_lines(states: Iterable[DatasetState]) -> tuple[list[SpanLine], list[ExclusionLine]]:
    """Return rows by split and by class of each span, and the exclusions of each data set."""
    spans = []
    exclusions = []
    for state in states:
        name = state.definition.name if state.definition else "?"
        for span in state.latest():
            spans.append(
                SpanLine(
                    dataset=name,
                    span=span.span,
                    version=span.version,
                    splits=dict(Counter(run.split for run in span.runs)),
                    classes=dict(sorted(Counter(run.label_name for run in span.runs).items())),
                )
            )
        exclusions += [
            ExclusionLine(dataset=name, reason=reason, runs=count) for reason, count in sorted(state.excluded().items())
        ]
    return spans, exclusions


def profiles(tables: Mapping[str, pa.Table], providers: Mapping[str, str]) -> list[Profile]:
    """Return the mean course of `PROFILE_COLUMN` by provider, in windows from each run's first sample.

    The recorder's averages since boot, and runs without a provider, are left out.
    """
    import numpy as np

    sums: dict[str, Any] = defaultdict(lambda: np.zeros(PROFILE_WINDOWS))
    counts: dict[str, Any] = defaultdict(lambda: np.zeros(PROFILE_WINDOWS))
    runs: Counter[str] = Counter()
    for run_id, table in tables.items():
        if not (provider := providers[run_id]):
            continue
        runs[provider] += 1
        times = np.array(table.column("time").cast("int64").to_pylist())
        values = np.array(table.column(PROFILE_COLUMN).to_pylist(), float)
        values[table.column("boot").to_numpy()] = np.nan
        window = (times - times[0]) // (PROFILE_INTERVAL_S * 1_000_000)
        for number in range(PROFILE_WINDOWS):
            mine = values[(window == number) & np.isfinite(values)]
            if mine.size:
                sums[provider][number] += mine.mean()
                counts[provider][number] += 1
    return [
        Profile(
            provider=provider,
            runs=runs[provider],
            means=[
                round(float(total / count), 4)
                for total, count in zip(sums[provider], counts[provider], strict=True)
                if count
            ],
        )
        for provider in sorted(runs)
    ]
