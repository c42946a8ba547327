"""Compare every example of a data set with pandas' computation from the logs. Writes the figures of docs/datasets.md.

    python -m studies.exact LISTING LOGS [--data-path DATA] [--normalised] [INTERVAL[:PATTERN] …]

Builds the data sets from a raw store that a backfill fills. For each, it prints the number of runs, the largest error
relative to max(|x|, 1), and whether a run changed its split between the first half of the runs and all of them. The
exit status is 1 if an error exceeds 1e-6 (normalised: 1e-5).
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path

import numpy as np

from ciml.cli.commands.operate.backfill import BackfillOptions
from ciml.data_root import DataRoot
from ciml.datasets.definition import DatasetDefinition
from ciml.datasets.state import DatasetState
from ciml.events.listing import open_listing
from ciml.pipelines.backfill.backfill import backfill
from ciml.pipelines.datasets.build import build_dataset
from ciml.transforms.examples.spans import inputs_of, read_span
from tests.transforms import direct

DEFAULT_SETS = ("1s", "10s", "1min", "10min", "7s", "10s:.")


def build(data: DataRoot, target: DataRoot, name: str, interval: str, pattern: str, slicer: str | None) -> DatasetState:
    """Build a data set of the provider."""
    definition = DatasetDefinition.from_json(
        {
            "name": name,
            "sample_interval": interval,
            "features_regex": pattern,
            "class_label": "provider",
            "span_runs": 500,
            "slicer": slicer,
        }
    )
    return build_dataset(data, target, definition).state


def splits_of(state: DatasetState) -> dict[str, str]:
    return {run.run_id: run.split for span in state.latest() for run in span.runs}


def compare(target: DataRoot, state: DatasetState, paths: dict[str, Path], interval: str) -> tuple[int, float]:
    """Compare the examples with pandas; return their number, and the largest error."""
    assert state.definition is not None
    assert state.resolved is not None
    resolved = state.resolved
    root = target.dataset(state.definition.name).store
    worst = 0.0
    count = 0
    for span in state.latest():
        table = read_span(root, span)
        inputs = inputs_of(table, resolved)
        facts = zip(*(table.column(name).to_pylist() for name in ("build_uuid", "n_windows")), strict=True)
        for row, (uuid, n_windows) in enumerate(facts):
            frame = direct.read_log.__wrapped__(paths[uuid])
            expected, valid = direct.unrolled(direct.resampled(frame, interval), resolved.columns, resolved.windows)
            assert n_windows == valid, f"{uuid}: {n_windows} windows, and pandas has {valid}"
            assert not inputs[row, valid:].any(), f"{uuid}: padding"
            error = np.abs(inputs[row, :valid] - expected[:valid]) / np.maximum(np.abs(expected[:valid]), 1)
            worst = max(worst, float(error.max(initial=0.0)))
            count += 1
    return count, worst


def compare_normalised(target: DataRoot, name: str, paths: dict[str, Path], interval: str) -> tuple[int, float]:
    """Compare the normalised records with numpy on pandas' windows; return their number, and the largest error."""
    from ciml.training.data.materialise import materialise
    from ciml.training.data.snapshot import ROLES, make_snapshot
    from ciml.trust import TrustPolicy
    from tests.training.records import written

    snapshot = make_snapshot(target.dataset(name), TrustPolicy.load(None))
    runs = list(snapshot.runs())
    resolved = snapshot.resolved
    examples = []
    for run in runs:
        frame = direct.read_log.__wrapped__(paths[run.run_id.split("~")[1]])
        bins = direct.resampled(frame, interval)
        examples.append(direct.unrolled(bins, resolved.columns, resolved.windows)[0])
    values = np.stack(examples)
    train = values[[run.split == "train" for run in runs]]
    spread = train.max(axis=0) - train.min(axis=0)
    spread[spread == 0] = 1
    mean = train.mean(axis=0)
    worst = 0.0
    count = 0
    with tempfile.TemporaryDirectory() as folder:
        materialised = materialise(target.dataset(name).store, snapshot, Path(folder, "records"))
        for role in ROLES:
            for ordinal, (inputs, *_) in written(materialised, role, snapshot).items():
                expected = (values[ordinal] - mean) / spread
                error = np.abs(inputs - expected) / np.maximum(np.abs(expected), 1)
                worst = max(worst, float(error.max()))
                count += 1
    return count, worst


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("listing", type=Path)
    parser.add_argument("logs", type=Path)
    parser.add_argument("--normalised", action="store_true")
    parser.add_argument("--data-path", help="a raw store that has the runs already")
    parser.add_argument("sets", nargs="*", default=DEFAULT_SETS)
    options = parser.parse_args()
    builds = [json.loads(line) for line in options.listing.read_text().splitlines()]
    paths = {line["build_uuid"]: options.logs / line["log_path"] for line in builds}
    is_exact = True
    with tempfile.TemporaryDirectory(prefix="exact-") as folder:
        data = DataRoot.open(options.data_path or Path(folder, "data"))
        if options.data_path is None:
            backfill(
                BackfillOptions(data_path=data.url, logs=str(options.logs)).load_config(),
                open_listing(str(options.listing)),
            )
        for number, text in enumerate(options.sets):
            interval, _, pattern = text.partition(":")
            target = DataRoot.open(Path(folder, str(number)))
            state = build(data, target, "all", interval, pattern or "(usr|1min)", None)
            half = splits_of(build(data, target, "half", interval, pattern or "(usr|1min)", f":{len(builds) // 2}"))
            moved = sum(splits_of(state)[run] != split for run, split in half.items())
            count, worst = compare(target, state, paths, interval)
            print(
                f"{text}: {count:,} runs, error {worst:.2e}; {moved} of {len(half):,} changed their split", flush=True
            )
            is_exact &= worst <= 1e-6 and moved == 0 and count == len(builds)
            if options.normalised:
                count, worst = compare_normalised(target, "all", paths, interval)
                print(f"{text} normalised: {count:,} runs, error {worst:.2e}", flush=True)
                is_exact &= worst <= 1e-5 and count == len(builds)
    return 0 if is_exact else 1


if __name__ == "__main__":
    sys.exit(main())
