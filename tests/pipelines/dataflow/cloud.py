"""A small Google Cloud on this machine: a GCS emulator, and the two calls of Dataflow's API that a submission needs."""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

BUCKET = "ci-dataflow"
IMAGE = "registry.example.org/ciml/dataflow:0.3.0"
SETTINGS = f"""\
project = "ci-project"
region = "europe-west1"
temp_location = "gs://{BUCKET}/temp"
staging_location = "gs://{BUCKET}/staging"
image = "{IMAGE}"
environment_secret = "projects/ci-project/secrets/ciml-environment"
kafka_secret = "projects/ci-project/secrets/ciml-kafka/versions/3"
kafka = "kafka.example.org:9093"
machine_type = "e2-standard-2"
max_workers = 3
service_account = "ciml@ci-project.iam.gserviceaccount.com"
network = "ci"
subnetwork = "regions/europe-west1/subnetworks/ci"
public_addresses = false
labels = ["team=ci"]
"""


def write_settings(folder: Path, **changes: str) -> Path:
    """The settings with other lines for some keys; "" removes one."""
    lines = [line for line in SETTINGS.splitlines() if line.split(" = ")[0] not in changes]
    path = folder / "dataflow.toml"
    path.write_text("\n".join([*lines, *(f"{key} = {value}" for key, value in changes.items() if value)]) + "\n")
    return path


@contextlib.contextmanager
def gcs_emulator(patch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Run the emulator with one bucket, and let Google's clients of this process use it. Yield a client."""
    from apache_beam.internal.gcp.auth import _Credentials
    from gcp_storage_emulator.server import create_server
    from google.auth.credentials import AnonymousCredentials
    from google.cloud.storage import Client

    server = create_server("127.0.0.1", 0, in_memory=True, default_bucket=BUCKET)
    server.start()
    try:
        port = server._api._httpd.server_port
        patch.setenv("STORAGE_EMULATOR_HOST", f"http://127.0.0.1:{port}")
        patch.setenv("GOOGLE_CLOUD_PROJECT", "ci-project")
        patch.setenv("NO_GCE_CHECK", "true")
        patch.setattr(_Credentials, "_credentials_init", True)  # none: Beam would look for them for half a minute
        yield Client(project="ci-project", credentials=AnonymousCredentials())
    finally:
        server.stop()


@dataclass
class DataflowApi:
    """The jobs of a stub of Dataflow's API, which accepts what it is sent."""

    endpoint: str = ""
    jobs: list[dict[str, Any]] = field(default_factory=list)
    running: dict[str, str] = field(default_factory=dict)
    fault: tuple[int, str] | None = None


@contextlib.contextmanager
def json_server(answer: Callable[[str, bytes], tuple[int, Any]]) -> Iterator[int]:
    """Serve JSON: ``answer`` returns the status and the value for a path and a body. Yield the port."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            status, value = answer(self.path, self.rfile.read(int(self.headers.get("Content-Length", 0))))
            body = json.dumps(value).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def do_GET(self) -> None:
            self.do_POST()

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server.server_port
        server.shutdown()


@contextlib.contextmanager
def dataflow_api() -> Iterator[DataflowApi]:
    """Run a stub of ``projects.locations.jobs``: create and list, as the reference of v1b3 describes them."""
    api = DataflowApi()

    def answer(path: str, body: bytes) -> tuple[int, Any]:
        if not body:
            listed = [
                {"id": number, "name": name, "currentState": "JOB_STATE_RUNNING"}
                for name, number in api.running.items()
            ]
            return 200, {"jobs": listed}
        if api.fault is not None:
            return api.fault[0], {"error": {"code": api.fault[0], "message": api.fault[1]}}
        assert path.startswith("/v1b3/projects/ci-project/locations/europe-west1/jobs"), path
        job = json.loads(body)
        api.jobs.append(job)
        return 200, {"id": f"job-{len(api.jobs)}", "name": job["name"], "clientRequestId": job["clientRequestId"]}

    with json_server(answer) as port:
        api.endpoint = f"http://localhost:{port}"
        yield api
