"""A client of a real ``ciml serve`` answers what the model in this process answers, and needs no data root."""

from __future__ import annotations

import json
from pathlib import Path

import httpx
import pytest
from click.testing import CliRunner, Result

import ciml
from ciml.cli.main import cli
from tests.serving.process import ServerProcess

ADDRESSES = (
    "http://127.0.0.1:{rest}",
    "http://127.0.0.1:{rest}/v1/models/status/labels/stable",
    "grpc://127.0.0.1:{grpc}/status",
)


def address(server: ServerProcess, form: str) -> str:
    return form.format(rest=server.rest_port, grpc=server.grpc_port)


def predict(*words: str) -> Result:
    return CliRunner().invoke(cli, ["predict", *words], env={"COLUMNS": "300"}, standalone_mode=False)


@pytest.mark.parametrize("form", ADDRESSES)
def test_a_client_answers_as_the_model_in_this_process(form: str, served: Path, model_server: ServerProcess) -> None:
    logs: list[ciml.api.types.Run] = [*sorted((served / "logs").iterdir())[:20], served / "none"]
    with ciml.open(served / "data") as data, ciml.Client(address(model_server, form)) as client:
        local = data.model("status")
        assert (client.name, client.version, client.classes, client.features) == (
            local.name, local.version, local.classes, local.features,
        )  # fmt: skip
        answers = client.predict(logs)
        for answer, expected in zip(answers, local.predict(logs), strict=True):
            assert (answer.run, answer.class_name, answer.reason) == (
                expected.run,
                expected.class_name,
                expected.reason,
            )
            assert answer.probabilities == pytest.approx(expected.probabilities, abs=1e-6)
        assert answers[-1].reason == "log_not_found"
        assert client.request(logs[0]) == local.request(logs[0])


def test_the_command_prints_the_same_for_a_server_and_for_a_data_root(
    served: Path, model_server: ServerProcess
) -> None:
    log = str(served / "logs" / "unit-001.csv")
    local = json.loads(predict(log, "--model", "status", "--data-path", str(served / "data"), "--json").stdout)
    for form in ADDRESSES:
        done = predict(log, "--server", address(model_server, form), "--json")
        assert (done.return_value, done.stderr) == (0, "")
        answer = json.loads(done.stdout)
        assert answer.pop("probabilities") == pytest.approx(local["probabilities"], abs=1e-6)
        assert answer.pop("probability") == pytest.approx(local["probability"], abs=1e-6)
        assert answer == {name: value for name, value in local.items() if not name.startswith("probabilit")}
    shown = predict(log, "--server", address(model_server, ADDRESSES[0])).stdout.splitlines()
    assert shown[0].strip() == f"status, version 1, {address(model_server, ADDRESSES[0])}"


def test_the_printed_request_is_a_body_of_the_rest_api(served: Path, model_server: ServerProcess) -> None:
    log = str(served / "logs" / "unit-001.csv")
    from_server = predict(log, "--server", address(model_server, ADDRESSES[0]), "--print-request")
    from_data = predict(log, "--model", "status", "--data-path", str(served / "data"), "--print-request")
    assert from_server.stdout == from_data.stdout
    url = f"http://127.0.0.1:{model_server.rest_port}/v1/models/status:predict"
    (row,) = httpx.post(url, content=from_data.stdout, trust_env=False).raise_for_status().json()["predictions"]
    expected = json.loads(predict(log, "--server", address(model_server, ADDRESSES[0]), "--json").stdout)
    assert row["class"] == expected["class"] == "failed"
    assert dict(zip(row["classes"], row["probabilities"], strict=True)) == pytest.approx(expected["probabilities"])


def test_a_folder_gives_its_logs_at_any_depth_and_counts_its_other_files(
    served: Path, model_server: ServerProcess, tmp_path: Path
) -> None:
    log = (served / "logs" / "unit-001.csv").read_bytes()
    for name in ("b/deep/x.csv", "a.csv", "b/.hidden", ".git/y.csv"):
        (tmp_path / "logs" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "logs" / name).write_bytes(log)
    (tmp_path / "logs" / "b" / "notes.txt").write_text("no telemetry\n")
    (tmp_path / "logs" / "nothing").touch()
    (tmp_path / "empty").mkdir()
    server = ("--server", address(model_server, ADDRESSES[0]), "--json")
    done = predict(str(tmp_path / "logs"), *server)
    files = [json.loads(line)["file"] for line in done.stdout.splitlines()]
    assert files == [str(tmp_path / "logs" / name) for name in ("a.csv", "b/deep/x.csv")]
    assert done.return_value == 0
    notes = tmp_path / "logs" / "nothing"
    assert done.stderr.startswith(f"{tmp_path}/logs: skipped 2 of its files (1 empty telemetry, 1 not telemetry), for")
    assert f"for example {notes}: empty telemetry" in done.stderr
    named = predict(str(tmp_path / "logs" / "b" / "notes.txt"), *server)  # a named file is never skipped
    assert (named.return_value, json.loads(named.stdout)["reason"]) == (2, "not_telemetry")
    (tmp_path / "logs" / "b" / "deep" / "x.csv").unlink()
    for folder in (tmp_path / "empty", tmp_path / "logs" / "b"):
        failed = CliRunner().invoke(cli, ["predict", str(folder), *server])
        assert (failed.exit_code, f"no log in {folder}" in failed.output) == (2, True)
