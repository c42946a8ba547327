"""Every example program is run, and what it prints is what is true."""

from __future__ import annotations

import gzip
import importlib
import json
import os
import runpy
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
from ciml.runs.outputs import decompressed
from ciml.storage import open_store
from ciml.telemetry import telemetry_columns
from ciml.transforms.logs.prepare import prepare_small
from ciml.transforms.parse.logs import Log, parse_logs
from tests.corpus import CORPUS, PACKED, builds
from tests.recorder.test_delivery import consume
from tests.runs.scenes import RawStore
from tests.transforms.samples import corpus

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = ROOT / "examples"
RUN_HERE = {"ask_the_model_server.py", "downsample_a_log.py", "read_a_data_set.py", "record_jobs.py"}
RUN_BY_THE_TUTORIAL = {"send_events.py"}


def example(name: str, *arguments: object) -> str:
    """What the program prints."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "TF_CPP_MIN_LOG_LEVEL": "2"}
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / name), *map(str, arguments)],
        capture_output=True, text=True, env=environment, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def samples() -> list[Sample]:
    return read_corpus(CORPUS, 60)


def table_of(sample: Sample) -> Any:
    return parse_logs([Log((CORPUS / sample.log_path).read_bytes())])[0]


def test_every_program_is_run() -> None:
    assert {path.name for path in EXAMPLES.glob("*.py")} == RUN_HERE | RUN_BY_THE_TUTORIAL


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
    assert [line.split()[:2] for line in lines[1:3]] == [[f"{name}:", str(counts[name])] for name in ("train", "test")]
    assert lines[3].endswith("2 of 2 windows")
    assert [line.split()[0] for line in lines[4:]] == ["usr", "sys"]


def test_a_log_that_is_none_and_a_data_set_without_spans_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "x.txt").write_text("no telemetry\n")
    create_dataset(DataRoot.open(tmp_path), DatasetDefinition(name="empty", class_label="provider"))
    for words, message in (
        (["downsample_a_log.py", str(tmp_path / "x.txt")], "not_telemetry"),
        (["read_a_data_set.py", str(tmp_path), "empty"], "ciml dataset update empty"),
    ):
        monkeypatch.setattr(sys, "argv", words)
        with pytest.raises(SystemExit, match=message):
            runpy.run_path(str(EXAMPLES / words[0]), run_name="__main__")


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


@pytest.fixture(scope="module")
def collect() -> Any:
    """The script that collects recordings."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(PACKED))
        return importlib.import_module("collect")


def members(packed: Path) -> dict[str, bytes]:
    """The unpacked logs of an archive, by name in order."""
    with tarfile.open(packed) as tar:
        found = {member.name: tar.extractfile(member) for member in tar.getmembers()}
        return {name: gzip.decompress(file.read()) for name, file in found.items() if file}


def test_the_corpus_is_what_its_card_says(collect: Any) -> None:
    found = builds()
    assert found == sorted(found, key=lambda build: (build["end_time"], build["build_uuid"]))
    assert len({build["build_uuid"] for build in found}) == len(found)
    paths = [build[name] for build in found for name in ("log_path", "output_path") if name in build]
    assert list(members(PACKED / "logs.tar")) == sorted(paths)
    assert collect.counts(found) in (PACKED / "README.md").read_text()
    assert {build["result"] for build in found} == {"SUCCESS", "FAILURE", "TIMED_OUT"}
    for build, table in zip(found, corpus()[1], strict=True):
        assert build["rows"] == table.num_rows, build
        assert set(build) <= set(collect.FIELDS)
        assert (build["exit_code"] == 0) == (build["result"] == "SUCCESS")
        assert ("change" in build) == (build["start_time"] > "2026-11-25")


def test_an_unpacked_corpus_is_collected_to_the_same(collect: Any, tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text(f"before\n{collect._BEGIN}old\n{collect._END}after\n")
    assert collect.collect([CORPUS], tmp_path) == []
    assert (tmp_path / "builds.jsonl").read_bytes() == (PACKED / "builds.jsonl").read_bytes()
    assert members(tmp_path / "logs.tar") == members(PACKED / "logs.tar")
    card = (tmp_path / "README.md").read_text()
    assert card == f"before\n{collect._BEGIN}{collect.counts(builds())}{collect._END}after\n"


def test_the_output_of_a_run_is_collected_without_colours_and_secrets(collect: Any, tmp_path: Path) -> None:
    """It is at the named path, or next to the log; a named one that is missing makes the run unusable."""
    first, *others = (build for build in builds() if "output_path" not in build)
    named = {**others[0], "output_path": "printed.txt"}
    missing = {**others[1], "output_path": "missing.txt"}
    recorded = {**first, "log_path": f"{first['build_uuid']}/log.csv.gz"}
    for line, original in ((recorded, first), (named, named), (missing, missing), (others[2], others[2])):
        path = tmp_path / line["log_path"]
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes((CORPUS / original["log_path"]).read_bytes())
    printed = b"\x1b[31mpassword=hunter2\x1b[0m\n3 failed"
    (tmp_path / "printed.txt").write_bytes(printed)
    (tmp_path / first["build_uuid"] / "job-output.txt.gz").write_bytes(gzip.compress(printed))
    lines = [recorded, named, missing, others[2]]
    (tmp_path / "builds.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    into = tmp_path / "into"
    into.mkdir()
    (rejected,) = collect.collect([tmp_path], into)
    assert "missing.txt" in rejected
    collected = [json.loads(line) for line in (into / "builds.jsonl").read_text().splitlines()]
    outputs = {line["build_uuid"]: line["output_path"] for line in collected if "output_path" in line}
    assert outputs == {
        line["build_uuid"]: f"logs/{line['build_name']}/{line['build_uuid']}.txt.gz" for line in (first, named)
    }
    packed = members(into / "logs.tar")
    assert [packed[path] for path in outputs.values()] == [b"password=REDACTED\n3 failed"] * 2
    assert len(packed) == len(collected) + 2 == 5


def test_the_outputs_of_the_corpus_are_as_ciml_stores_them() -> None:
    """So a stored one equals its file, and no secret that ciml recognises is in the corpus."""
    paths = [build["output_path"] for build in builds() if "output_path" in build]
    texts = [gzip.decompress((CORPUS / path).read_bytes()) for path in paths]
    stored = [b"".join(decompressed(output.text, "")) for output in prepare_small(texts)]
    assert (len(texts), stored) == (291, texts)


def test_recordings_are_joined_and_what_is_unusable_is_reported(
    collect: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = b'"dool"\n"Cmdline:","dool --output /tmp/x/dstat.csv 1"\n"system","a"\n"time","usr"\n'
    facts = {
        "result": "FAILURE", "exit_code": 1, "node_flavor": "one-core", "pipeline": "gate", "elapsed_s": 1.5,
        "start_time": "2026-01-01T00:00:00Z", "end_time": "2026-01-01T00:00:09Z", "build_name": "x",
    }  # fmt: skip
    second = {"build_name": "go-std-unit", "project": "go-std", "change": "7", "attempt": 2, "patch": False,
              "trouble": "cpu", "trouble_s": 3.5, "node_provider": "alder"}  # fmt: skip
    #: By folder and id: what is unlike the facts above, and the log.
    runs: dict[str, list[tuple[str, dict[str, Any], bytes | None]]] = {
        "old": [("a", {"build_name": "numpy-lib", "fault": "patch"}, log + b"Jan-01 00:00:00,1\n"),
                ("b", {"build_name": None}, log)],
        "new": [("c", second, log + b"x,1\nx,2\nx"), ("d", {}, log), ("e", {}, b""), ("f", {}, None)],
    }  # fmt: skip
    for folder, rows in runs.items():
        (tmp_path / folder).mkdir()
        text = ""
        for at, (name, changes, data) in enumerate(rows):
            line = {**facts, "build_uuid": name, "end_time": f"2026-01-01T00:00:0{9 - at}Z", "log_path": f"{name}.gz"}
            kept = {key: value for key, value in {**line, **changes}.items() if value is not None}
            text += json.dumps(kept) + "\n"
            if data is not None:
                (tmp_path / folder / f"{name}.gz").write_bytes(gzip.compress(data) if data else b"\x1f\x8bcut")
        (tmp_path / folder / "builds.jsonl").write_text(text + '{"half')
    rejected = collect.collect([tmp_path / "old", tmp_path / "new"], tmp_path)
    assert [line.partition("builds.jsonl ")[2].partition(":")[0] for line in rejected] == [
        "line 2", "line 3", "line 2", "line 3", "line 4", "line 5",
    ]  # fmt: skip
    for number, message in ((0, "no field 'build_name'"), (2, "d.gz has no sample"), (4, "No such file")):
        assert message in rejected[number]
    lines = [json.loads(line) for line in (tmp_path / "builds.jsonl").read_text().splitlines()]
    assert list(lines[0]) == [name for name in collect.FIELDS if name in lines[0]]
    names = ("build_uuid", "patch", "trouble", "project", "attempt", "rows")
    assert [[line[name] for name in names] for line in lines] == [
        ["a", True, "none", "numpy", 1, 1], ["c", False, "cpu", "go-std", 2, 2],
    ]  # fmt: skip
    assert members(tmp_path / "logs.tar") == {
        "logs/go-std-unit/c.csv.gz": log.replace(b"/tmp/x/", b"") + b"x,1\nx,2\nx",
        "logs/numpy-lib/a.csv.gz": log.replace(b"/tmp/x/", b"") + b"Jan-01 00:00:00,1\n",
    }
    first = (tmp_path / "logs.tar").read_bytes()
    monkeypatch.setattr("time.time", lambda: 1e9)
    assert collect.collect([tmp_path / "old", tmp_path / "new"], tmp_path) == rejected
    assert (tmp_path / "logs.tar").read_bytes() == first, "its bytes depend on the recordings alone"
    with pytest.raises(SystemExit, match="name each recording once"):
        collect.collect([tmp_path / "old", tmp_path / "old"], tmp_path)
