"""The engines that need no Java: an S3 endpoint (moto), a log server, the model server, and mosquitto."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path

from ciml.engines import EXTRA
from ciml.engines.base import HOST, Engine, Launch, Settings
from ciml.engines.environment import S3_ENVIRONMENT
from ciml.engines.processes import python_command, python_environment
from ciml.errors import CimlError, EngineError
from ciml.extras import require

# Anyone on this machine may publish and subscribe. Sessions and messages survive a restart.
_MOSQUITTO_CONFIG = """\
listener {port} {host}
allow_anonymous true
user {user}
persistence true
persistence_location {folder}/
autosave_interval 1
max_queued_messages 0
"""


class S3(Engine):
    """moto's S3 over HTTP. Its buckets are in memory and end with it."""

    name = "s3"
    uses = ("s3",)
    health = "/moto-api/"

    def prepare(self, home: Path, ports: Mapping[str, int], settings: Settings) -> Launch:
        require("moto", EXTRA)
        require("flask", EXTRA)  # moto's server mode; moto itself can be installed without it
        url = f"http://{HOST}:{ports['s3']}"
        command = python_command("moto.server", "-H", HOST, "-p", str(ports["s3"]))
        environment = {**S3_ENVIRONMENT, "PYTHONUNBUFFERED": "1"}
        return Launch("S3 by moto", command, ports, address=url, urls={"s3": url}, environment=environment)


class LogServer(Engine):
    """Serves a folder of logs over HTTP, like a CI log host."""

    name = "logs"
    uses = ("logs",)
    health = ""  # of its address itself

    def prepare(self, home: Path, ports: Mapping[str, int], settings: Settings) -> Launch:
        if settings.logs_root is None:
            raise CimlError("the log server needs a folder to serve: --logs-root FOLDER")
        root = os.path.abspath(settings.logs_root)
        if not os.path.isdir(root):
            raise CimlError(f"--logs-root {root} is not a folder")
        url = f"http://{HOST}:{ports['logs']}"
        command = python_command("ciml.engines.programs", "logs", root, str(ports["logs"]))
        environment = python_environment()
        what = f"HTTP server of {root}"
        return Launch(what, command, ports, address=url, urls={"logs": url}, environment=environment)


class ModelServer(Engine):
    """``ciml serve``, the model server with TensorFlow Serving's API."""

    name = "models"
    uses = ("models-grpc", "models-rest")
    health = "/monitoring/prometheus/metrics"

    def prepare(self, home: Path, ports: Mapping[str, int], settings: Settings) -> Launch:
        if settings.models_config is None:
            raise CimlError("the model server needs its configuration: --models-config FILE")
        grpc_port = str(ports["models-grpc"])
        rest_port = str(ports["models-rest"])
        # The engine runs in another folder.
        config = settings.models_config if "://" in settings.models_config else os.path.abspath(settings.models_config)
        arguments = ("serve", "--config", config, "--grpc-port", grpc_port, "--rest-port", rest_port)
        return Launch(
            "model server (TensorFlow Serving's API)",
            python_command("ciml.cli.main", *arguments),
            ports,
            address=f"{HOST}:{grpc_port}",
            urls={"grpc": f"{HOST}:{grpc_port}", "rest": f"http://{HOST}:{rest_port}"},
            environment=python_environment(),
        )


class Mosquitto(Engine):
    """Debian's MQTT broker, without TLS and passwords. Its sessions in ``<home>/mosquitto`` survive a restart."""

    name = "mosquitto"
    uses = ("mosquitto",)

    def prepare(self, home: Path, ports: Mapping[str, int], settings: Settings) -> Launch:
        program = find_mosquitto()
        folder = home / "mosquitto"
        folder.mkdir(parents=True, exist_ok=True)
        config = folder / "mosquitto.conf"
        port = ports["mosquitto"]
        user = os.environ.get("USER", "root")  # by default it changes to a user who may not write here
        config.write_text(_MOSQUITTO_CONFIG.format(port=port, host=HOST, folder=folder, user=user))
        address = f"mqtt://{HOST}:{port}"
        return Launch("mosquitto (MQTT)", (program, "-c", str(config)), ports, address=address)


def find_mosquitto() -> str:
    """Return the path of mosquitto, which Debian puts into an administrator's folder.

    Raises:
      EngineError: it is not installed.
    """
    path = shutil.which("mosquitto") or shutil.which("mosquitto", path="/usr/sbin:/usr/local/sbin")
    if path is None:
        raise EngineError("mosquitto is not installed: apt-get install mosquitto")
    return path
