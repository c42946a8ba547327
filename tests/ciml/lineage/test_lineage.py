"""Steps become OpenLineage events, by whatever transport, and no transport fails or delays a step."""

from __future__ import annotations

import copy
import importlib.util
import json
import os
import socket
import threading
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest

from ciml.data_root import DataRoot
from ciml.errors import CimlError
from ciml.lineage import OFF, Data, Description, Lineage, StepEvent, lineage_of
from ciml.lineage.openlineage import MAX_COLUMNS, StoreTransport, dataset_name, run_event
from tests.ciml.lineage.recorded import Recorded, checked, fault, names, states, stored

RAW = Data("/srv/data/raw", "7")
EXAMPLES = Data("s3://bucket/sets/a", "1", (("usr", "float32[5]"),), 3, {"spans": [[1, 1, "ab"]]})
FULL = Description(
    (RAW, EXAMPLES),
    (Data("/srv/data/models/m", "2", rows=5),),
    {"seed": 0, "hidden_layers": [8]},
    (("beats it", True), ("slow", False)),
    {"evaluation": {"accuracy": {"value": 0.5, "low": None}}},
)


@pytest.fixture(autouse=True)
def nothing_configured(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("OPENLINEAGE_URL", "OPENLINEAGE_CONFIG", "OPENLINEAGE_DISABLED", "OPENLINEAGE_NAMESPACE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def data(tmp_path: Path) -> DataRoot:
    return DataRoot.open(tmp_path / "data")


def run_steps(data: DataRoot, count: int = 1) -> None:
    with lineage_of(data, True) as lineage:
        for number in range(count):
            with lineage.step(f"train.m{number}") as step:
                step.describe(lambda: FULL)


def test_off_describes_and_imports_nothing(data: DataRoot) -> None:
    def fails() -> Description:
        raise AssertionError("described")

    with lineage_of(data, False) as lineage:
        assert lineage is OFF
        with lineage.step("snapshot.m", fails) as step:
            step.describe(fails)
    assert not data.exists()


def test_a_step_has_a_start_and_an_end_of_the_same_run(data: DataRoot) -> None:
    recorded = Recorded(data)
    with recorded.step("train.m", lambda: Description(FULL.inputs)) as step:
        step.describe(lambda: FULL)
    first, last = recorded.events
    assert states(recorded.events) == [("train.m", "START"), ("train.m", "COMPLETE")]
    assert first["run"]["runId"] == last["run"]["runId"]
    assert first["eventTime"] <= last["eventTime"]
    assert (names(first["inputs"]), first["outputs"]) == ([("/srv/data/raw", "7"), ("sets/a", "1")], [])
    assert names(last["outputs"]) == [("/srv/data/models/m", "2")]
    assert [each["namespace"] for each in last["inputs"]] == ["file", "s3://bucket"]
    assert last["inputs"][1]["facets"]["schema"]["fields"][0]["name"] == "usr"
    assert last["inputs"][1]["facets"]["ciml_data"]["spans"] == [[1, 1, "ab"]]
    assert last["inputs"][1]["inputFacets"]["dataQualityMetrics"]["rowCount"] == 3
    assert last["outputs"][0]["outputFacets"]["outputStatistics"]["rowCount"] == 5
    facets = last["run"]["facets"]
    parameters = {each["key"]: each["value"] for each in facets["executionParameters"]["parameters"]}
    assert parameters == {"seed": "0", "hidden_layers": "[8]"}
    assert {each["name"]: each["status"] for each in facets["test"]["tests"]} == {"beats it": "pass", "slow": "fail"}
    assert facets["ciml_evaluation"]["evaluation"]["accuracy"]["value"] == 0.5
    assert facets["processing_engine"]["name"] == "ciml"
    assert first["job"]["namespace"] == f"file://{data.url}"
    assert first["job"]["facets"]["jobType"]["jobType"] == "TRAIN"


def test_the_model_that_events_are_compared_with_is_strict(data: DataRoot) -> None:
    recorded = Recorded(data)
    with recorded.step("train.m") as step:
        step.describe(lambda: FULL)
    plants: list[tuple[Callable[[Any], Any], str, Any]] = [
        (lambda e: e, "eventType", "DONE"),
        (lambda e: e, "eventTime", "yesterday"),
        (lambda e: e, "more", 1),
        (lambda e: e["run"], "runId", "7"),
        (lambda e: e["inputs"][0], "namespace", ""),
        (lambda e: e["inputs"][0]["facets"], "versions", {"_producer": "urn:x", "_schemaURL": "urn:x"}),
        (lambda e: e["inputs"][0]["facets"]["version"], "datasetVersion", 7),
        (lambda e: e["inputs"][0]["facets"]["version"], "_producer", ""),
        (lambda e: e["run"]["facets"], "ciml_evaluation", {"_producer": "urn:x", "_schemaURL": "urn:x"}),
    ]
    for place, key, wrong in plants:
        spoiled = copy.deepcopy(recorded.events[-1])
        assert not fault(spoiled)
        place(spoiled)[key] = wrong
        assert fault(spoiled), (key, wrong)


def test_an_error_ends_a_step_as_failed_without_secrets(data: DataRoot) -> None:
    recorded = Recorded(data)
    with pytest.raises(CimlError), recorded.step("push.m"):
        raise CimlError("no answer of https://user:hunter2@host/x?token=hunter2\n" + "x" * 5000)
    with pytest.raises(KeyboardInterrupt), recorded.step("push.m"):
        raise KeyboardInterrupt
    assert [state for _, state in states(recorded.events)] == ["START", "FAIL", "START", "ABORT"]
    error = recorded.events[1]["run"]["facets"]["errorMessage"]
    assert error["message"].startswith("CimlError: no answer of https://host/x?token=REDACTED")
    assert len(error["message"]) == 1000
    assert "hunter2" not in json.dumps(recorded.events)


def test_a_description_that_fails_is_left_out(data: DataRoot, caplog: pytest.LogCaptureFixture) -> None:
    recorded = Recorded(data)
    with recorded.step("train.m", lambda: Description(FULL.inputs)) as step:
        step.describe(lambda: 1 / 0)  # type: ignore[arg-type, return-value]
    assert states(recorded.events) == [("train.m", "START"), ("train.m", "COMPLETE")]
    assert names(recorded.events[1]["inputs"]) == names(recorded.events[0]["inputs"])
    assert "lineage: a step cannot be described" in caplog.text


@pytest.mark.parametrize(
    ("address", "name"),
    [
        ("/srv/data/raw", ("file", "/srv/data/raw")),
        ("file:///srv/data", ("file", "/srv/data")),
        ("s3://bucket/a/raw", ("s3://bucket", "a/raw")),
        ("s3://bucket", ("s3://bucket", "/")),
        ("https://user:pw@host/list.json?token=x", ("https://host", "list.json?token=REDACTED")),
    ],
)
def test_data_are_named_as_openlineage_names_them(address: str, name: tuple[str, str]) -> None:
    assert dataset_name(address) == name


@pytest.mark.parametrize(
    ("parent", "job"), [("airflow/dag.task/{}", "dag.task"), ("airflow/dag/no-id", ""), ("x", "")], ids=str
)
def test_namespace_and_parent_come_from_the_environment(
    data: DataRoot, monkeypatch: pytest.MonkeyPatch, parent: str, job: str
) -> None:
    run_id = "01941f29-7c00-7f39-8b2b-9f3a0f5d3a11"
    monkeypatch.setenv("OPENLINEAGE_NAMESPACE", "farm")
    monkeypatch.setenv("OPENLINEAGE_PARENT_ID", parent.format(run_id))
    recorded = Recorded(data)
    with recorded.step("train.m"):
        pass
    event = recorded.events[0]
    assert event["job"]["namespace"] == "farm"
    found = event["run"]["facets"].get("parent")
    if not job:
        assert found is None
        return
    assert found["run"]["runId"] == run_id
    assert found["job"] == {"namespace": "airflow", "name": job, "facets": {}}


def test_a_wide_schema_is_cut(data: DataRoot) -> None:
    recorded = Recorded(data)
    columns = tuple((f"c{number}", "float32") for number in range(MAX_COLUMNS + 5))
    with recorded.step("train.m", lambda: Description((Data("/x", columns=columns),))):
        pass
    assert len(recorded.events[0]["inputs"][0]["facets"]["schema"]["fields"]) == MAX_COLUMNS


def test_events_go_in_order_into_the_data_root_unless_openlineage_is_configured(
    data: DataRoot, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENLINEAGE_DISABLED", "true")
    run_steps(data)
    assert not data.exists()
    monkeypatch.delenv("OPENLINEAGE_DISABLED")
    log = tmp_path / "events.log"
    (tmp_path / "openlineage.yml").write_text(
        f"transport: {{type: file, log_file_path: {log}, append: true}}\ntags: {{run: {{farm: north}}}}\n"
    )
    run_steps(data, 5)
    assert not data.exists()
    events = [checked(json.loads(line)) for line in log.read_text().splitlines()]
    assert ("farm", "north") in [(tag["key"], tag["value"]) for tag in events[0]["run"]["facets"]["tags"]["tags"]]
    (tmp_path / "openlineage.yml").unlink()
    run_steps(data, 5)
    wanted = [(f"train.m{number}", state) for number in range(5) for state in ("START", "COMPLETE")]
    assert states(stored(data)) == states(events) == wanted


def test_a_server_gets_the_events_in_order_with_the_key(data: DataRoot, monkeypatch: pytest.MonkeyPatch) -> None:
    posted: list[tuple[str, str, str]] = []

    class Endpoint(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            event = checked(json.loads(self.rfile.read(int(self.headers["content-length"]))))
            posted.append((self.path, self.headers["authorization"], event["eventType"]))
            self.send_response(201)
            self.send_header("content-length", "0")
            self.end_headers()

    with ThreadingHTTPServer(("127.0.0.1", 0), Endpoint) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setenv("OPENLINEAGE_URL", f"http://127.0.0.1:{server.server_port}")
        monkeypatch.setenv("OPENLINEAGE_API_KEY", "key")
        with monkeypatch.context() as patch:
            patch.setattr("os.environ", dict(os.environ))  # the client sets variables
            run_steps(data, 2)
        server.shutdown()
    assert posted == [("/api/v1/lineage", "Bearer key", state) for state in ("START", "COMPLETE") * 2]
    assert not data.exists()


def test_each_event_is_an_object_and_their_names_are_in_order_of_time(data: DataRoot) -> None:
    second = datetime(2026, 11, 29, 10, 0, 0, tzinfo=UTC)
    times = [second + timedelta(microseconds=number) for number in (0, 0, 1, 500_000, 1_000_000)]
    transport = StoreTransport(data.lineage)
    for number, at in reversed([*enumerate(times)]):
        run_id = f"01890000-0000-7000-8000-{number:012d}"
        transport.emit(run_event(StepEvent(run_id, "train.m", "START", at, Description()), data))
    assert [datetime.fromisoformat(event["eventTime"]) for event in stored(data)] == times


def test_an_event_that_is_not_sent_is_reported_without_secrets(
    data: DataRoot, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(data: DataRoot) -> None:
        raise OSError("no answer of https://user:hunter2@host/x?token=hunter2")

    monkeypatch.setattr("ciml.lineage.openlineage.make_client", fail)
    run_steps(data)
    assert "lineage: START of train.m0 was not sent: OSError: no answer of https://host/x?token=REDACTED" in caplog.text
    assert "hunter2" not in caplog.text


def test_the_address_of_the_source_code_has_no_secret(data: DataRoot, tmp_path: Path, monkeypatch: Any) -> None:
    (tmp_path / ".git").mkdir()
    (tmp_path / ".git/config").write_text('[remote "origin"]\n\turl = https://user:hunter2@host/repo.git\n')
    (tmp_path / ".git/HEAD").write_text("0" * 40)
    monkeypatch.setenv("OPENLINEAGE__FACETS__SOURCE_CODE_LOCATION__DISABLED", "false")
    run_steps(data)
    location = stored(data)[0]["job"]["facets"]["sourceCodeLocation"]
    assert (location["url"], location["version"]) == ("https://host/repo.git", "0" * 40)
    assert "hunter2" not in json.dumps(stored(data))


@pytest.mark.timeout(60)
@pytest.mark.parametrize("kind", ["silent", "closed", "nonsense"])
def test_no_endpoint_fails_or_delays_a_step(
    data: DataRoot, monkeypatch: pytest.MonkeyPatch, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    """A request would take 60 s."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        if kind == "silent":
            server.listen(50)  # it accepts and never answers
        url = "gopher://x" if kind == "nonsense" else f"http://127.0.0.1:{server.getsockname()[1]}"
        retry = {"total": 2, "connect": 2, "backoff_factor": 0.5}
        transport = {"type": "http", "url": url, "timeout": 60, "retry": retry}
        monkeypatch.setenv("OPENLINEAGE__TRANSPORT", json.dumps(transport))
        lineage = Lineage(data, close_s=30 if kind == "nonsense" else 0.2)
        for number in range(200):
            with lineage.step(f"train.m{number}") as step:
                step.describe(lambda: FULL)
        lineage.close()
    if kind != "nonsense":
        assert "is lost: 100 events wait" in caplog.text
        assert "lineage: events were not sent within 0.2 s and are lost" in caplog.text
    else:
        assert "lineage: START of train.m0 was not sent: " in caplog.text
    assert not data.exists()


def test_a_step_after_the_end_is_reported_as_lost(data: DataRoot, caplog: pytest.LogCaptureFixture) -> None:
    lineage = Lineage(data)
    lineage.close()
    with lineage.step("train.late"):
        pass
    for state in ("START", "COMPLETE"):
        assert f"lineage: {state} of train.late is lost: lineage is closed" in caplog.text
    assert not data.exists()


@pytest.mark.parametrize("is_sent", [True, False])
def test_only_events_that_are_not_sent_are_reported_at_the_end(
    data: DataRoot, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, is_sent: bool
) -> None:
    ended = threading.Event()
    blocking = {"close" if is_sent else "emit": lambda _: ended.wait(60)}
    monkeypatch.setattr("ciml.lineage.openlineage.make_client", lambda data: Mock(**blocking))
    lineage = Lineage(data, close_s=0.3)
    with lineage.step("train.m"):
        pass
    lineage.close()
    ended.set()
    assert ("events were not sent" in caplog.text) == (not is_sent)


def test_a_missing_extra_is_one_line(data: DataRoot, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(CimlError, match=r"^this needs ciml\[lineage\]: pip install 'ciml\[lineage\]'$"):
        run_steps(data)
