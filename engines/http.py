"""The HTTP engines: an S3 endpoint (moto), a log server, and the model server."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from ciml.engines.base import HOST, Engine, Launch, Settings, http_answers, listens
from ciml.engines.processes import python_command, python_environment
from ciml.engines.state import REAL, EngineState
from ciml.errors import CimlError
from ciml.extras import require

# moto accepts any credentials; boto3 needs some.
S3_ENVIRONMENT = {"AWS_ACCESS_KEY_ID": "local", "AWS_SECRET_ACCESS_KEY": "local", "AWS_DEFAULT_REGION": "us-east-1"}


def s3_environment(endpoint: str) -> dict[str, str]:
    """Return the environment variables that point boto3, Beam and pyarrow to the S3 endpoint."""
    return {"AWS_ENDPOINT_URL_S3": endpoint, **S3_ENVIRONMENT}


class S3(Engine):
    """moto's S3 over HTTP. Its buckets are in memory and end with it."""

    name = "s3"
    uses = ("s3",)

    def prepare(self, home: Path, ports: Mapping[str, int], settings: Settings) -> Launch:
        require("moto")
        require("flask")
        url = f"http://{HOST}:{ports['s3']}"
        state = EngineState(self.name, REAL, "S3 by moto", url, ports={"s3": ports["s3"]}, urls={"s3": url})
        command = python_command("moto.server", "-H", HOST, "-p", str(ports["s3"]))
        return Launch(state, command, {**S3_ENVIRONMENT, "PYTHONUNBUFFERED": "1"})

    def ready(self, home: Path, state: EngineState) -> EngineState | None:
        return state if http_answers(f"{state.address}/moto-api/") else None


class LogServer(Engine):
    """Serves a folder of logs over HTTP, like a CI log host."""

    name = "logs"
    uses = ("logs",)

    def prepare(self, home: Path, ports: Mapping[str, int], settings: Settings) -> Launch:
        if settings.logs_root is None:
            raise CimlError("the log server needs a folder to serve: --logs-root FOLDER")
        root = os.path.abspath(settings.logs_root)
        if not os.path.isdir(root):
            raise CimlError(f"--logs-root {root} is not a folder")
        url = f"http://{HOST}:{ports['logs']}"
        state = EngineState(self.name, REAL, f"HTTP server of {root}", url, ports={"logs": ports["logs"]})
        command = python_command("ciml.engines.log_server", root, str(ports["logs"]))
        return Launch(state.at(urls={"logs": url}), command, python_environment())

    def ready(self, home: Path, state: EngineState) -> EngineState | None:
        return state if http_answers(state.address) else None


def _absolute(path: str) -> str:
    """Return an absolute path, since the engine runs in another folder."""
    return path if "://" in path else os.path.abspath(path)


class ModelServer(Engine):
    """``ciml serve``, the model server with TensorFlow Serving's API."""

    name = "models"
    uses = ("models-grpc", "models-rest")

    def prepare(self, home: Path, ports: Mapping[str, int], settings: Settings) -> Launch:
        if settings.models_config is None:
            raise CimlError("the model server needs its configuration: --models-config FILE")
        grpc_port = ports["models-grpc"]
        rest_port = ports["models-rest"]
        state = EngineState(
            name=self.name,
            kind=REAL,
            what="model server (TensorFlow Serving's API)",
            address=f"{HOST}:{grpc_port}",
            ports={use: ports[use] for use in self.uses},
            urls={"grpc": f"{HOST}:{grpc_port}", "rest": f"http://{HOST}:{rest_port}"},
        )
        command = python_command(
            *("ciml.cli.main", "serve", "--config", _absolute(settings.models_config)),
            *("--grpc-port", str(grpc_port), "--rest-port", str(rest_port)),
        )
        return Launch(state, command, python_environment())

    def ready(self, home: Path, state: EngineState) -> EngineState | None:
        answers = http_answers(f"{state.urls['rest']}/monitoring/prometheus/metrics")
        return state if answers and listens(state.ports["models-grpc"]) else None
