"""Runs as they are looked at, written down by hand, and a data set with names that mean harm."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ciml.data_root import DataRoot
from ciml.datasets.definition import DatasetDefinition, ResolvedDefinition
from ciml.pipelines.datasets.update import create_dataset, update_dataset
from ciml.reports.dataset.read import Runs
from ciml.training.normalise import Normalisation
from tests.pipelines.datasets.dataset_scenes import define
from tests.runs.scenes import RawStore
from tests.transforms.samples import USR, make_facts, table

SECOND_US = 1_000_000
DAY_US = 86_400 * SECOND_US
#: A script, a formula that is none, a name that legends leave out, quotes, control characters, and a long one.
HOSTILE = (
    "<script>alert(1)</script>",
    "$\\frac{1}{",
    "_hidden",
    "\"><img src=x onerror='alert(2)'>",
    "line\nbreak\x00\x1b[31m\u202e",
    "x" * 3000,
)


def runs(values: Sequence[Sequence[float]], label: Sequence[int], **facts: Any) -> Runs:
    """Runs of one feature, ``usr`` at 10 s, with as many windows each as ``values`` has; L is that of the longest.

    ``facts``: ``build_name``, ``outcome``, ``split``, ``day``, ``classes``, ``dataset``, ``functions``.
    """
    longest = max(len(each) for each in values)
    inputs = np.zeros((len(values), longest, 1), np.float32)
    for row, each in enumerate(values):
        inputs[row, : len(each), 0] = each
    classes = facts.get("classes", ("passed", "failed", "odd")[: max(2, max(label) + 1)])
    functions = facts.get("functions", ())
    definition = DatasetDefinition.from_json(
        {"name": "tests", "aggregation_functions": functions}
        if functions
        else {"name": "tests", "max_windows": longest}
    )
    resolved = ResolvedDefinition(
        definition=definition, columns=(USR,), features=("usr",), classes=classes, windows=longest
    )
    count = len(values)
    split = np.array(facts.get("split", ["train"] * count), object)
    return Runs(
        dataset="tests",
        resolved=resolved,
        excluded={},
        run_id=np.array([f"zuul~{number}~1" for number in range(count)], object),
        build_name=np.array(facts.get("build_name", ["unit"] * count), object),
        split=split,
        outcome=np.array(facts.get("outcome", ["success"] * count), object),
        label=np.array(label, np.int64),
        n_windows=np.array([len(each) for each in values], np.int32),
        day=np.array(facts.get("day", ["2026-11-24"] * count), "datetime64[D]"),
        facts=facts.get("facts", {}),
        sampled=np.arange(count),
        inputs=inputs,
        normalisation=Normalisation.of(inputs[split == "train"]),
    )


def make_hostile(folder: Path) -> None:
    """A data path with the data set ``bad``: 24 runs of 2 to 5 windows, whose jobs and classes have hostile names.

    The data set ``cpu`` has no examples.
    """
    data = DataRoot.open(folder)
    raw = RawStore(data)
    found = []
    for number in range(24):
        name = HOSTILE[number % len(HOSTILE)]
        windows = 2 + number % 4
        times = [number * DAY_US + window * SECOND_US for window in range(windows)]
        usr = [10.0 * (number % len(HOSTILE)) + window for window in range(windows)]
        found.append(
            (
                make_facts(number, build_name=name, start_us=times[0], end_us=times[-1], labels={"who": name}),
                table(times, usr=usr, load=[float(number)] * windows),
            )
        )
    raw.add(found)
    keys: dict[str, Any] = {
        "name": "bad",
        "class_label": "who",
        "sample_interval": "1s",
        "max_windows": 5,
        "features_regex": ".",
    }
    keys["span_runs"] = 16  # two spans of different sizes
    create_dataset(data, DatasetDefinition.from_json(keys))
    update_dataset(data.dataset("bad"), seal=True)
    define(data)
