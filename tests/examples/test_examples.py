"""Every example program is run, and what it prints is what is true."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from ciml.data_root import DataRoot
from ciml.datasets.definition import DatasetDefinition
from ciml.events.cloudevents import FINISHED, decode_message
from ciml.storage.open import open_store
from ciml.telemetry import telemetry_columns
from cli.demo.corpus import Sample, read_corpus
from pipelines.datasets.update import create_dataset, update_dataset
from tests.pipelines.raw_store.scenes import RawStore
from tests.recorder.test_delivery import consume
from transforms.parse.logs import Log, parse_logs

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = ROOT / "examples"
CORPUS = EXAMPLES / "corpus"
#: Where each program is run.
RUN_BY = {
    "ask_the_model_server.py": "here",
    "downsample_a_log.py": "here",
    "read_a_data_set.py": "here",
    "record_jobs.py": "here",
    "send_events.py": "tests/project/test_readme.py, as the README says it",
}


def example(name: str, *arguments: object, code: int = 0) -> str:
    """What the program prints."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "TF_CPP_MIN_LOG_LEVEL": "2"}
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / name), *map(str, arguments)],
        capture_output=True, text=True, env=environment, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == code, done.stderr
    return done.stdout if code == 0 else done.stderr


@pytest.fixture(scope="module")
def samples() -> list[Sample]:
    return read_corpus(CORPUS, 60)


def table_of(sample: Sample) -> Any:
    return parse_logs([Log((CORPUS / sample.log_path).read_bytes())])[0]


def test_every_program_is_run() -> None:
    assert sorted(path.name for path in EXAMPLES.glob("*.py")) == sorted(RUN_BY)


def test_a_log_is_downsampled_as_pandas_does(samples: list[Sample]) -> None:
    import pandas as pd

    log = CORPUS / samples[0].log_path
    lines = example("downsample_a_log.py", log, "--features", "^(usr|1m)$").splitlines()
    table = table_of(samples[0])
    frame = pd.DataFrame(
        {name: table[full].to_pylist() for name, full in (("usr", "total cpu usage:usr"), ("1m", "load avg:1m"))},
        index=pd.DatetimeIndex(table["time"].to_pylist()),
    )
    expected = frame.resample("10s").mean()
    assert lines[0].endswith(f"{len(expected)} windows of 10s")
    assert lines[1].split() == ["usr", "1m"]
    printed = [[float(cell) for cell in line.split()] for line in lines[2:]]
    assert printed == [[pytest.approx(value, abs=0.006) for value in row] for row in expected.to_numpy()]


def test_a_log_that_is_none_is_named(tmp_path: Path) -> None:
    (tmp_path / "x.txt").write_text("no telemetry\n")
    assert "not_telemetry" in example("downsample_a_log.py", tmp_path / "x.txt", code=1)


def test_a_data_set_is_read_as_the_manifest_says(samples: list[Sample], tmp_path: Path) -> None:
    data = DataRoot.open(tmp_path)
    RawStore(data).add([(sample.facts, table_of(sample)) for sample in samples])
    definition = DatasetDefinition(
        name="provider", class_label="provider", features_regex="^(usr|sys)$", aggregation_functions=("mean", "std")
    )
    create_dataset(data, definition)
    state = update_dataset(data.dataset("provider"), seal=True).state
    # what no manifest names is no part of it
    (tmp_path / "datasets" / "provider" / "span-1" / "version-1" / "train" / "examples-stray.parquet").write_bytes(b"x")
    lines = example("read_a_data_set.py", tmp_path, "provider").splitlines()
    counts = Counter(run.split for run in state.latest()[0].runs)
    assert [line.split()[:2] for line in lines[:2]] == [
        ["test:", str(counts["test"])],
        ["train:", str(counts["train"])],
    ]
    assert lines[2].endswith("2 of 2 windows")
    assert [line.split()[0] for line in lines[3:]] == ["usr", "sys"]


def test_a_data_set_without_spans_is_named(tmp_path: Path) -> None:
    create_dataset(DataRoot.open(tmp_path), DatasetDefinition(name="empty", class_label="provider"))
    assert "ciml dataset update empty" in example("read_a_data_set.py", tmp_path, "empty", code=1)


@pytest.mark.engines
def test_jobs_are_recorded(kafka: str, topic: Any, tmp_path: Path) -> None:
    events = topic(name="events")
    lines = example(
        "record_jobs.py", "--jobs", "2", "--log-dir", tmp_path / "logs", "--python", sys.executable,
        "--part", "numpy.fft.tests.test_helper", "--", "--kafka", kafka, "--topic", events,
        "--samples-topic", topic(name="samples"), "--spool", tmp_path / "spool",
    ).splitlines()  # fmt: skip
    assert [line.partition(" after")[0] for line in lines] == [
        "numpy.fft.tests.test_helper, none: exit status 0", "numpy.fft.tests.test_helper, patch: exit status 1",
    ]  # fmt: skip
    told = [decode_message(message) for message in consume(kafka, events)]
    runs = [event.run_facts[0] for event in told if event.type == FINISHED]
    assert [(run.result, run.change, run.labels["fault"]) for run in runs] == [
        ("SUCCESS", "0", "none"), ("FAILURE", "1", "patch"),
    ]  # fmt: skip
    assert len(list((tmp_path / "logs").glob("*/*/dstat-csv_log.txt.gz"))) == 2


def test_the_model_server_is_asked_by_stock_stubs(samples: list[Sample], tmp_path: Path) -> None:
    import numpy as np

    from ciml.datasets.definition import resolve
    from ciml.decision import Decision
    from serving.push import push
    from serving.server.server import ModelServer, ServerOptions
    from tests.serving.models_fixture import direct, save_model
    from transforms.examples.prepare import prepare

    tables = [table_of(sample) for sample in samples[:20]]
    definition = resolve(
        DatasetDefinition(name="m", class_label="provider", features_regex="^(usr|1m)$", max_windows=6),
        [telemetry_columns(table.column_names) for table in tables],
        [sample.facts for sample in samples[:20]],
    )
    model = save_model(tmp_path / "candidate", definition=definition)
    data = DataRoot.open(tmp_path / "data")
    push(data, "m", open_store(model), Decision(True), check=False)
    options = ServerOptions(data.models.url("models.config"), grpc_port=0, rest_port=0, poll_s=0.1)
    with ModelServer(options) as server:
        log = CORPUS / samples[0].log_path
        lines = example("ask_the_model_server.py", f"127.0.0.1:{server.grpc_port}", "m", data.url, log).splitlines()
    inputs, n_windows = prepare(tables[0], definition)
    expected = direct(model, inputs[np.newaxis], np.array([n_windows], np.int32))[0]
    assert lines[0] == "m version 1:"
    printed = {line.split()[0]: float(line.split()[1]) for line in lines[1:]}
    assert printed == {
        name: pytest.approx(value, abs=6e-5) for name, value in zip(definition.classes, expected, strict=True)
    }
    assert list(printed.values()) == sorted(printed.values(), reverse=True)


def load_draw() -> Any:
    spec = importlib.util.spec_from_file_location("draw", CORPUS / "draw.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def builds() -> list[dict[str, Any]]:
    return [json.loads(line) for line in (CORPUS / "builds.jsonl").read_text().splitlines()]


def test_the_corpus_is_what_its_readme_says() -> None:
    found = builds()
    assert len(found) == 960
    assert len({build["build_name"] for build in found}) == 10
    assert len({build["node_flavor"] for build in found}) == 55
    shares = Counter(build["node_provider"] for build in found)
    assert {name: round(count / 960, 3) for name, count in shares.items()} == {
        "alibaba": 0.298, "aws": 0.257, "huawei": 0.244, "tencent": 0.201,
    }  # fmt: skip
    twins = Counter((build["build_name"], build["node_flavor"], build["size"]) for build in found)
    assert sum(count for count in twins.values() if count > 1) == 487
    assert found == sorted(found, key=lambda build: (build["end_time"], build["build_uuid"]))
    paths = [CORPUS / build["log_path"] for build in found]
    assert all(path.is_file() for path in paths)
    assert {path for path in CORPUS.glob("logs/**/*") if path.is_file()} == set(paths)
    assert sum(path.stat().st_size for path in [*paths, CORPUS / "builds.jsonl"]) < 6_000_000


def test_a_smaller_corpus_is_drawn_the_same_every_time(tmp_path: Path) -> None:
    draw = load_draw()
    found = builds()
    drawn = draw.draw(found, total=100)
    assert len(drawn) == 100
    assert draw.draw(list(reversed(found)), total=100) == drawn
    shares = Counter(build["node_provider"] for build in drawn)
    whole = Counter(build["node_provider"] for build in found)
    assert all(abs(shares[name] - count / 9.6) < 6 for name, count in whole.items())


def test_drawing_copies_the_logs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    draw = load_draw()
    monkeypatch.setattr(draw.draw, "__defaults__", (12, draw.MIN_ROWS))
    draw.main(CORPUS, tmp_path)
    drawn = [json.loads(line) for line in (tmp_path / "builds.jsonl").read_text().splitlines()]
    assert len(drawn) == 12
    for build in drawn:
        assert (tmp_path / build["log_path"]).read_bytes() == (CORPUS / build["log_path"]).read_bytes()
