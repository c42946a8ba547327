"""The engines besides Kafka and Flink: an S3 endpoint (moto), a log server, the model server, mosquitto and Gerrit."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Mapping
from importlib import resources
from pathlib import Path

from ciml.engines import EXTRA, jars
from ciml.engines.base import HOST, Engine, Launch, Settings, java_arguments
from ciml.engines.environment import S3_ENVIRONMENT
from ciml.engines.processes import python_command, run_once
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

#: The account that Gerrit makes at its first start (``--dev``), with its HTTP password.
GERRIT_ADMIN = ("admin", "secret")
GERRIT_HEAP_MB = 160

# The index is written with each change. Otherwise Gerrit, if killed, loses the index entries of the last minutes.
_GERRIT_CONFIG = """\
[gerrit]
	basePath = git
	canonicalWebUrl = http://{host}:{http}/
	serverId = 5c3a5fd2-0f6a-4b7a-9f1c-000000000001
[auth]
	type = DEVELOPMENT_BECOME_ANY_ACCOUNT
[httpd]
	listenUrl = http://{host}:{http}/
[sshd]
	listenAddress = {host}:{ssh}
[index]
	type = lucene
[index "changes_open"]
	commitWithin = 0
[index "changes_closed"]
	commitWithin = 0
[sendemail]
	enable = false
	smtpServer = localhost
[cache]
	directory = cache
"""
_GERRIT_OPTIONS = (
    "-XX:+UseSerialGC",
    "-XX:TieredStopAtLevel=1",  # half of the CPU time of a start; see `ciml.engines.base.SMALL_JVM`
    "-Djava.awt.headless=true",
    "-Dflogger.backend_factory=com.google.common.flogger.backend.log4j.Log4jBackendFactory#getInstance",
    "-Dflogger.logging_context=com.google.gerrit.server.logging.LoggingContext#getInstance",
)


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
        return Launch(f"HTTP server of {root}", command, ports, address=url, urls={"logs": url})


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
            python_command("ciml", *arguments),
            ports,
            address=f"{HOST}:{grpc_port}",
            urls={"grpc": f"{HOST}:{grpc_port}", "rest": f"http://{HOST}:{rest_port}"},
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


class Gerrit(Engine):
    """Gerrit 3.10. Its site in ``<home>/gerrit/site`` survives a restart."""

    name = "gerrit"
    uses = ("gerrit", "gerrit-ssh")
    health = "/config/server/version"

    def prepare(self, home: Path, ports: Mapping[str, int], settings: Settings) -> Launch:
        folder = home / "gerrit"
        java = gerrit_command(folder, settings)
        site = make_gerrit_site(folder / "site", ports["gerrit"], ports["gerrit-ssh"])
        if not (site / "git").exists():
            init_gerrit_site(java, site, home / "logs" / "gerrit-init.log")
        url = f"http://{HOST}:{ports['gerrit']}"
        return Launch(
            "Gerrit 3.10 (REST, git, SSH)",
            (*java, "Daemon", "-d", str(site), "--headless", "--console-log"),
            ports,
            address=url,
            urls={"http": url, "ssh": f"ssh://{HOST}:{ports['gerrit-ssh']}"},
            memory_mb=GERRIT_HEAP_MB,
        )


def check_gerrit_needs(settings: Settings | None = None) -> tuple[str, str]:
    """Return the paths of Java and of Gerrit's jars, which are fetched where they are missing.

    Raises:
      NoJava: Java 17, or its compiler, or Maven for the fetch is missing.
    """
    java = jars.find_java()
    modules = subprocess.run([java, "--list-modules"], capture_output=True, text=True, timeout=30, check=False).stdout
    if "jdk.compiler" not in modules:  # it runs RunGerrit.java from its source
        raise jars.NoJava(f"{java} has no compiler: Gerrit needs a JDK (apt-get install openjdk-17-jdk-headless)")
    return java, jars.class_path("gerrit", (settings or Settings()).notify)


def gerrit_command(folder: Path, settings: Settings | None = None) -> tuple[str, ...]:
    """Return the command that runs a program of Gerrit; its arguments are to be added.

    Args:
      folder: gets the file of Java's options.
      settings: for notes of a fetch of jars.

    Raises:
      NoJava: see `check_gerrit_needs`.
    """
    java, path = check_gerrit_needs(settings)
    program = resources.files("ciml.engines").joinpath("RunGerrit.java")
    return java, java_arguments(folder, path, (f"-Xmx{GERRIT_HEAP_MB}m", *_GERRIT_OPTIONS)), str(program)


def make_gerrit_site(site: Path, http: int, ssh: int) -> Path:
    """Write the configuration of a site; return its folder."""
    (site / "etc").mkdir(parents=True, exist_ok=True)
    (site / "etc" / "gerrit.config").write_text(_GERRIT_CONFIG.format(host=HOST, http=http, ssh=ssh))
    return site


def init_gerrit_site(java: tuple[str, ...], site: Path, log: Path) -> None:
    """Fill a configured site, with the account `GERRIT_ADMIN`: 10 s.

    Raises:
      EngineError: it failed; the message has the last lines of the log.
    """
    command = [*java, "Init", "--batch", "--dev", "--no-auto-start", "-d", str(site)]
    run_once(command, log, 180, "the first start of Gerrit")
