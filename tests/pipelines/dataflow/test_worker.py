"""The start of a worker: its environment comes from Secret Manager, and its ciml is that of the job."""

from __future__ import annotations

import base64
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from google.auth.credentials import AnonymousCredentials

from ciml import secret_manager
from ciml.errors import CimlError, EngineError
from ciml.kafka import KafkaOptions
from ciml.pipelines.dataflow.worker import parse_environment, prepare
from ciml.version import __version__
from tests.pipelines.dataflow.cloud import json_server

NAME = "projects/ci-project/secrets/ciml"
ROOT = Path(__file__).parents[3]


@pytest.fixture
def secrets(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, Any]]:
    """The answers of Secret Manager by path: bytes, or an HTTP status. The client is Google's, over REST."""
    from google.cloud.secretmanager import SecretManagerServiceClient

    answers: dict[str, Any] = {}

    def answer(path: str, _: bytes) -> tuple[int, Any]:
        found = answers.get(path.partition("?")[0], 404)
        if isinstance(found, bytes):
            return 200, {"payload": {"data": base64.b64encode(found).decode()}}
        return found, {"error": {"code": found, "message": "not today"}}

    with json_server(answer) as port:
        options = {"api_endpoint": f"http://127.0.0.1:{port}"}
        client = SecretManagerServiceClient(
            transport="rest", credentials=AnonymousCredentials(), client_options=options
        )
        monkeypatch.setattr(secret_manager, "_client", lambda: client)
        yield answers


def test_a_secret_is_read_by_name(secrets: dict[str, Any]) -> None:
    secrets[f"/v1/{NAME}/versions/latest:access"] = "nächstes".encode()
    secrets[f"/v1/{NAME}/versions/3:access"] = b"third"
    assert secret_manager.read_secret(NAME) == "nächstes"
    assert secret_manager.read_secret(f"{NAME}/versions/3") == "third"
    with pytest.raises(CimlError, match=rf"{NAME}/versions/4 cannot be read \(NotFound\).*secretAccessor"):
        secret_manager.read_secret(f"{NAME}/versions/4")
    secrets[f"/v1/{NAME}/versions/3:access"] = 403
    with pytest.raises(CimlError, match=r"\(Forbidden|PermissionDenied\)"):
        secret_manager.read_secret(f"{NAME}/versions/3")
    secrets[f"/v1/{NAME}/versions/3:access"] = 400
    with pytest.raises(EngineError, match=r"Secret Manager does not answer: 400 .*not today"):
        secret_manager.read_secret(f"{NAME}/versions/3")
    secrets[f"/v1/{NAME}/versions/3:access"] = b"\xff\xfe"
    with pytest.raises(CimlError, match="not UTF-8"):
        secret_manager.read_secret(f"{NAME}/versions/3")


def test_a_worker_gets_its_environment(secrets: dict[str, Any], tmp_path: Path) -> None:
    secrets[f"/v1/{NAME}/versions/latest:access"] = b"# S3\nAWS_ACCESS_KEY_ID=key\n\nAWS_SECRET_ACCESS_KEY=a=b c\n"
    options = {"options": {"ciml_version": __version__, "ciml_environment_secret": NAME}}
    environment = {"PATH": "/bin", "PIPELINE_OPTIONS": json.dumps(options)}
    prepare(environment)
    assert environment == {
        "PATH": "/bin", "PIPELINE_OPTIONS": json.dumps(options),
        "AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "a=b c",
    }  # fmt: skip
    # the form of portable runners, in a file
    (tmp_path / "options").write_text(json.dumps({f"beam:option:{key}:v1": v for key, v in options["options"].items()}))
    environment = {"PIPELINE_OPTIONS_FILE": str(tmp_path / "options")}
    prepare(environment)
    assert environment["AWS_SECRET_ACCESS_KEY"] == "a=b c"
    nothing: dict[str, str] = {"PIPELINE_OPTIONS": "{}"}
    prepare(nothing)
    assert nothing == {"PIPELINE_OPTIONS": "{}"}


def test_another_version_of_ciml_is_refused() -> None:
    options = json.dumps({"options": {"ciml_version": "0.0.9"}})
    with pytest.raises(
        CimlError, match=rf"made by ciml 0\.0\.9, and its image has {__version__}: use an image of 0\.0\.9"
    ):
        prepare({"PIPELINE_OPTIONS": options})


def test_a_bad_line_is_named_without_its_content() -> None:
    with pytest.raises(CimlError, match=r"^secret, line 2: want NAME=VALUE") as caught:
        parse_environment("A=1\nhunter2\n", "secret")
    assert "hunter2" not in str(caught.value)


@pytest.mark.whole
def test_beam_imports_it_before_a_worker_does_anything() -> None:
    """Beam's own start of a worker, up to its first connection."""
    code = """
import json, os, sys
from apache_beam.runners.worker.sdk_worker_main import create_harness
from ciml.errors import CimlError
os.environ["CONTROL_API_SERVICE_DESCRIPTOR"] = ""
for version in sys.argv[1:]:
    options = {"beam_plugins": ["ciml.pipelines.dataflow.worker"], "ciml_version": version}
    os.environ["PIPELINE_OPTIONS"] = json.dumps({"options": options})
    try:
        create_harness(os.environ, dry_run=True)
        print("started", "ciml.pipelines.dataflow.worker" in sys.modules)
    except CimlError as error:
        print(error)
"""
    command = [sys.executable, "-c", code, "9.9", __version__]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    rejected, started = done.stdout.splitlines()
    assert "made by ciml 9.9, and its image has" in rejected
    assert started == "started True"


def test_kafka_properties_come_from_a_secret_when_a_client_is_made(secrets: dict[str, Any]) -> None:
    path = f"/v1/{NAME}/versions/latest:access"
    secrets[path] = b"security.protocol=SASL_SSL\nsasl.password=first-word\n"
    options = KafkaOptions("kafka:9092", {"client.id": "ciml"}, secret=NAME)
    assert (options.common()["sasl.password"], options.common()["client.id"]) == ("first-word", "ciml")
    assert options.hide("the broker said first-word") == "the broker said ***"
    assert "first-word" not in repr(options)
    secrets[path] = b"sasl.password=second-word\n"
    assert options.consumer()["sasl.password"] == "second-word"
    assert options.hide("second-word") == "***"
    assert options != KafkaOptions("kafka:9092", {"client.id": "ciml"})
    assert hash(options) != hash(KafkaOptions("kafka:9092", {"client.id": "ciml"}))
    secrets[path] = b"bootstrap.servers=elsewhere:9092\n"
    with pytest.raises(CimlError, match=r"bootstrap\.servers is set by --kafka"):
        options.common()
    secrets[path] = b"one two\n"
    with pytest.raises(CimlError, match=rf"{NAME}, line 1: want name=value"):
        options.common()
