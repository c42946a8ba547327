"""A run that a stage of a data set raises an unexpected exception for is excluded; the others are as without it."""

from __future__ import annotations

import gzip
import json
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

import ciml.transforms.examples.from_logs
import ciml.transforms.examples.spans
import ciml.transforms.parse.logs
from ciml.data_root import DataRoot
from ciml.datasets.definition import DatasetDefinition
from ciml.datasets.state import SpanVersion
from ciml.errors import EngineError
from ciml.events.listing import Reading, open_listing
from ciml.pipelines.datasets.build import build_dataset
from ciml.pipelines.datasets.listed_runs import ListedRuns
from ciml.pipelines.datasets.update import update_dataset, verify_dataset
from ciml.transforms.examples.spans import read_span
from ciml.transforms.fetch.policy import FetchPolicy
from ciml.transforms.parse.logs import Log, parse_logs
from ciml.trust import TrustPolicy
from tests.pipelines.backfill.backfilling import Listed, listed
from tests.pipelines.datasets.dataset_scenes import define, runs
from tests.pipelines.poison import check_detail, fail_for
from tests.runs.scenes import RawStore


def _begins_with_5(tables: Sequence[pa.Table], *_: Any) -> bool:
    return any(table.column("total cpu usage:usr")[0].as_py() == 5.0 for table in tables)


@pytest.mark.parametrize("runner", [None, "fnapi"])
def test_a_poisoned_run_is_excluded_and_the_others_are_examples(
    data: DataRoot, raw: RawStore, tmp_path: Any, monkeypatch: pytest.MonkeyPatch, runner: str | None
) -> None:
    stored = runs(1, 8)
    raw.add(stored)
    define(data, span_runs=8, tdt_split=[1, 1, 1])
    other = DataRoot.open(tmp_path / "other")
    RawStore(other).add([each for number, each in enumerate(stored) if number != 4])
    define(other, span_runs=7, tdt_split=[1, 1, 1])
    update_dataset(other.dataset("cpu"))  # the direct computation on the others
    fail_for(monkeypatch, ciml.transforms.examples.spans, "downsample", _begins_with_5, FloatingPointError("five"))
    (span,) = update_dataset(data.dataset("cpu"), runner=runner).sealed
    (excluded,) = span.excluded
    assert (excluded["run_id"], excluded["reason"]) == (stored[4][0].run_id, "internal_error")
    check_detail(excluded["detail"], "examples: FloatingPointError: five [")
    wanted = update_dataset(other.dataset("cpu")).state.latest()[0]
    assert span.runs == wanted.runs
    assert {split: [file.digest for file in files] for split, files in span.files.items()} == {
        split: [file.digest for file in files] for split, files in wanted.files.items()
    }
    assert read_span(data.dataset("cpu").store, span).equals(read_span(other.dataset("cpu").store, wanted))
    assert verify_dataset(data.dataset("cpu")) == []
    monkeypatch.undo()
    # a later version of the span tries it again: here one with a corrected label
    failed = stored[0][0].replace(outcome="failure", result="FAILURE")
    raw.add(corrections=[failed])
    (again,) = update_dataset(data.dataset("cpu"), runner=runner).sealed
    assert (again.version, again.excluded, len(again.runs)) == (2, (), 8)


def test_a_store_that_does_not_answer_excludes_no_run(
    data: DataRoot, raw: RawStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    raw.add(runs(1, 8))
    define(data, span_runs=8)
    away = EngineError("the store is away")
    fail_for(monkeypatch, ciml.transforms.examples.spans, "downsample", _begins_with_5, away)
    with pytest.raises(EngineError, match="is away"):
        update_dataset(data.dataset("cpu"))
    monkeypatch.undo()
    (span,) = update_dataset(data.dataset("cpu")).sealed
    assert (span.excluded, len(span.runs)) == ((), 8)


@pytest.mark.parametrize("stage", ["parse", "examples"])
@pytest.mark.parametrize("jobs", [1, 2])
def test_a_poisoned_line_of_a_listing_is_excluded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stage: str, jobs: int
) -> None:
    made = listed(tmp_path / "logs", 12, tricks=False)
    line = json.loads(made.lines[5])
    text = gzip.decompress((made.folder / line["log_path"]).read_bytes()).rstrip(b"\n")
    (made.folder / "poison.csv").write_bytes(text)
    made.lines[5] = json.dumps({**line, "log_path": "poison.csv"}).encode()
    (table,) = parse_logs([Log(text)])
    assert isinstance(table, pa.Table)
    found, error = {}, FloatingPointError("text")
    for name, poison in {"good": "", "bad": stage}.items():
        with monkeypatch.context() as patch:
            if poison == "parse":
                is_text = lambda logs, *_: any(log.data == text for log in logs)  # noqa: E731
                fail_for(patch, ciml.transforms.parse.logs, "parse_logs", is_text, error)
            if poison == "examples":
                is_table = lambda tables, *_: any(each.equals(table) for each in tables)  # noqa: E731
                fail_for(patch, ciml.transforms.examples.from_logs, "downsample", is_table, error)
            found[name] = _built(made, DataRoot.open(tmp_path / name), jobs)
    good, bad = found.values()
    assert good.excluded == ()
    (excluded,) = bad.excluded
    assert (excluded["run_id"], excluded["reason"]) == (f"zuul~{line['build_uuid']}~1", "internal_error")
    assert excluded["detail"].startswith(f"{stage}: FloatingPointError: ")
    assert len(excluded["detail"]) < 1500
    assert bad.runs == tuple(run for run in good.runs if run.run_id != excluded["run_id"])


def _built(made: Listed, target: DataRoot, jobs: int) -> SpanVersion:
    keys = {"name": "cpu", "class_label": "project", "features_regex": "(usr|1min)", "span_runs": 40}
    reading, fetch = Reading("backfill", "zuul", str(made.folder)), FetchPolicy(file_roots=(str(made.folder),))
    with (
        closing(open_listing(str(made.path))) as listing,
        ListedRuns(listing, reading, TrustPolicy.load(), fetch, jobs=jobs) as source,
    ):
        (span,) = build_dataset(source, target, DatasetDefinition.from_json(keys)).sealed
    assert verify_dataset(target.dataset("cpu")) == []
    return span
