"""Every example program is run, and what it prints is what is true."""

from __future__ import annotations

import gzip
import importlib.util
import json
import os
import subprocess
import sys
import tarfile
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from ciml.cli.demo.corpus import Sample, read_corpus
from ciml.data_root import DataRoot
from ciml.datasets.definition import DatasetDefinition
from ciml.events.cloudevents import FINISHED, decode_message
from ciml.pipelines.datasets.update import create_dataset, update_dataset
from ciml.storage import open_store
from ciml.telemetry import telemetry_columns
from ciml.transforms.parse.logs import Log, parse_logs
from tests.corpus import CORPUS, PACKED, builds
from tests.recorder.test_delivery import consume
from tests.runs.scenes import RawStore
from tests.transforms.samples import corpus

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = ROOT / "examples"
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
        name="project", class_label="project", features_regex="^(usr|sys)$", aggregation_functions=("mean", "std")
    )
    create_dataset(data, definition)
    state = update_dataset(data.dataset("project"), seal=True).state
    # what no manifest names is no part of it
    (tmp_path / "datasets" / "project" / "span-1" / "version-1" / "train" / "examples-stray.parquet").write_bytes(b"x")
    lines = example("read_a_data_set.py", tmp_path, "project").splitlines()
    counts = Counter(run.split for run in state.latest()[0].runs)
    assert lines[0].startswith(f"Dataset('project': {counts.total()} runs of 2 x 2, classes ")
    assert [line.split()[:2] for line in lines[1:3]] == [
        ["train:", str(counts["train"])],
        ["test:", str(counts["test"])],
    ]
    assert lines[3].endswith("2 of 2 windows")
    assert [line.split()[0] for line in lines[4:]] == ["usr", "sys"]


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
    sent = [decode_message(message) for message in consume(kafka, events, "ci-events")]
    runs = [event.run_facts[0] for event in sent if event.type == FINISHED]
    assert [(run.result, run.change, run.labels["fault"]) for run in runs] == [
        ("SUCCESS", "0", "none"), ("FAILURE", "1", "patch"),
    ]  # fmt: skip
    assert len(list((tmp_path / "logs").glob("*/*/dstat-csv_log.txt.gz"))) == 2


@pytest.mark.whole
def test_the_model_server_is_asked_by_stock_stubs(samples: list[Sample], tmp_path: Path) -> None:
    import numpy as np

    from ciml.datasets.definition import resolve
    from ciml.serving.push import push
    from ciml.serving.registry import Decision
    from ciml.serving.server.server import ModelServer, ServerOptions
    from ciml.transforms.examples.prepare import prepare
    from tests.serving.models_fixture import direct, save_model

    tables = [table_of(sample) for sample in samples[:20]]
    definition = resolve(
        DatasetDefinition(name="m", class_label="project", features_regex="^(usr|1m)$", max_windows=6),
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


def load_collect() -> Any:
    spec = importlib.util.spec_from_file_location("collect", PACKED / "collect.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["collect"] = module
    spec.loader.exec_module(module)
    return module


def members(packed: Path) -> dict[str, bytes]:
    """The unpacked logs of an archive, by name in order."""
    with tarfile.open(packed) as tar:
        found = {member.name: tar.extractfile(member) for member in tar.getmembers()}
        return {name: gzip.decompress(file.read()) for name, file in found.items() if file}


def test_the_corpus_is_what_its_card_says() -> None:
    found = builds()
    assert found == sorted(found, key=lambda build: (build["end_time"], build["build_uuid"]))
    assert len({build["build_uuid"] for build in found}) == len(found)
    assert sorted(members(PACKED / "logs.tar")) == list(members(PACKED / "logs.tar")) == sorted(
        build["log_path"] for build in found
    )  # fmt: skip
    assert load_collect().counts(found) in (PACKED / "README.md").read_text()
    assert {build["result"] for build in found} == {"SUCCESS", "FAILURE", "TIMED_OUT"}
    for build, table in zip(found, corpus()[1], strict=True):
        assert build["rows"] == table.num_rows, build
    for build in found:
        assert set(build) <= set(load_collect().FIELDS)
        assert build["exit_code"] == 0 if build["result"] == "SUCCESS" else build["exit_code"] != 0
        assert ("change" in build) == (build["start_time"] > "2026-11-25")


def test_an_unpacked_corpus_is_collected_to_the_same(tmp_path: Path) -> None:
    collect = load_collect()
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "README.md").write_text(f"before\n{collect._BEGIN}old\n{collect._END}after\n")
        assert collect.collect([CORPUS], tmp_path / name) == []
    for name in ("builds.jsonl", "logs.tar", "README.md"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
    assert (tmp_path / "one" / "builds.jsonl").read_bytes() == (PACKED / "builds.jsonl").read_bytes()
    assert members(tmp_path / "one" / "logs.tar") == members(PACKED / "logs.tar")
    card = (tmp_path / "one" / "README.md").read_text()
    assert card == f"before\n{collect._BEGIN}{collect.counts(builds())}{collect._END}after\n"


def test_recordings_are_joined_and_what_is_unusable_is_reported(tmp_path: Path) -> None:
    collect, log = (
        load_collect(),
        b'"dool"\n"Cmdline:","dool --output /tmp/x/dstat.csv 1"\n"system","a"\n"time","usr"\n',
    )
    facts = {
        "result": "FAILURE", "exit_code": 1, "node_flavor": "one-core", "pipeline": "gate", "elapsed_s": 1.5,
        "start_time": "2026-01-01T00:00:00Z", "end_time": "2026-01-01T00:00:09Z",
    }  # fmt: skip
    lines = {
        "old": [{"build_uuid": "a", "build_name": "numpy-lib", "fault": "patch"}, {"build_uuid": "b", "fault": "io"}],
        "new": [
            {"build_uuid": "c", "build_name": "go-std-unit", "project": "go-std", "change": "7", "attempt": 2,
             "patch": False, "trouble": "cpu", "trouble_s": 3.5, "node_provider": "alder"},
            {"build_uuid": "d", "build_name": "x"}, {"build_uuid": "e", "build_name": "x"},
            {"build_uuid": "f", "build_name": "x"},
        ],
    }  # fmt: skip
    for name, some in lines.items():
        (tmp_path / name).mkdir()
        rows = [{**facts, "end_time": f"2026-01-01T00:00:0{9 - at}Z", "log_path": f"{line['build_uuid']}.gz", **line}
                for at, line in enumerate(some)]  # fmt: skip
        (tmp_path / name / "builds.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows) + '{"half')
    for name, data in {"old/a": log + b"Jan-01 00:00:00,1\n", "old/b": log, "new/c": log + b"x,1\nx,2\nx", "new/d": log,
                       "new/e": b""}.items():  # fmt: skip
        (tmp_path / f"{name}.gz").write_bytes(gzip.compress(data) if data else b"\x1f\x8bcut")
    rejected = collect.collect([tmp_path / "old", tmp_path / "new"], tmp_path)
    assert [line.partition("builds.jsonl ")[2].partition(":")[0] for line in rejected] == [
        "line 2", "line 3", "line 2", "line 3", "line 4", "line 5",
    ]  # fmt: skip
    assert "no field 'build_name'" in rejected[0]
    assert rejected[2].endswith("d.gz has no sample")
    assert "No such file" in rejected[4]
    first, second = (json.loads(line) for line in (tmp_path / "builds.jsonl").read_text().splitlines())
    assert list(first) == [name for name in collect.FIELDS if name in first]
    assert [(line["build_uuid"], line["patch"], line["trouble"], line["project"], line["attempt"], line["rows"])
            for line in (first, second)] == [
        ("a", True, "none", "numpy", 1, 1), ("c", False, "cpu", "go-std", 2, 2),
    ]  # fmt: skip
    assert members(tmp_path / "logs.tar") == {
        "logs/go-std-unit/c.csv.gz": log.replace(b"/tmp/x/", b"") + b"x,1\nx,2\nx",
        "logs/numpy-lib/a.csv.gz": log.replace(b"/tmp/x/", b"") + b"Jan-01 00:00:00,1\n",
    }
    with pytest.raises(SystemExit, match="name each recording once"):
        collect.collect([tmp_path / "old", tmp_path / "old"], tmp_path)
