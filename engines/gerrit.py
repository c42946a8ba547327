"""Gerrit, the code review server, from Maven's jars: REST, git and SSH on loopback, without its web pages."""

from __future__ import annotations

import subprocess
from collections.abc import Mapping
from importlib import resources
from pathlib import Path

from ciml.engines import jars
from ciml.engines.base import HOST, Engine, Launch, Settings, java_arguments
from ciml.engines.processes import run_once

#: The account that Gerrit makes at its first start (``--dev``), with its HTTP password.
ADMIN = ("admin", "secret")
HEAP_MB = 160

# The index is written with each change. Otherwise Gerrit, if killed, loses the index entries of the last minutes.
_CONFIG = """\
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
_OPTIONS = (
    "-XX:+UseSerialGC",
    "-Djava.awt.headless=true",
    "-Dflogger.backend_factory=com.google.common.flogger.backend.log4j.Log4jBackendFactory#getInstance",
    "-Dflogger.logging_context=com.google.gerrit.server.logging.LoggingContext#getInstance",
)


class Gerrit(Engine):
    """Gerrit 3.10. Its site in ``<home>/gerrit/site`` survives a restart."""

    name = "gerrit"
    uses = ("gerrit", "gerrit-ssh")
    health = "/config/server/version"

    def prepare(self, home: Path, ports: Mapping[str, int], settings: Settings) -> Launch:
        folder = home / "gerrit"
        java = java_command(folder, settings)
        site = make_site(folder / "site", ports["gerrit"], ports["gerrit-ssh"])
        if not (site / "git").exists():
            init_site(java, site, home / "logs" / "gerrit-init.log")
        url = f"http://{HOST}:{ports['gerrit']}"
        return Launch(
            "Gerrit 3.10 (REST, git, SSH)",
            (*java, "Daemon", "-d", str(site), "--headless", "--console-log"),
            ports,
            address=url,
            urls={"http": url, "ssh": f"ssh://{HOST}:{ports['gerrit-ssh']}"},
            memory_mb=HEAP_MB,
        )


def check_needs(settings: Settings | None = None) -> tuple[str, str]:
    """Return the paths of Java and of Gerrit's jars, which are fetched where they are missing.

    Raises:
      NoJava: Java 17, or its compiler, or Maven for the fetch is missing.
    """
    java = jars.find_java()
    modules = subprocess.run([java, "--list-modules"], capture_output=True, text=True, timeout=30, check=False).stdout
    if "jdk.compiler" not in modules:  # it runs RunGerrit.java from its source
        raise jars.NoJava(f"{java} has no compiler: Gerrit needs a JDK (apt-get install openjdk-17-jdk-headless)")
    return java, jars.class_path("gerrit", (settings or Settings()).notify)


def java_command(folder: Path, settings: Settings | None = None) -> tuple[str, ...]:
    """Return the command that runs a program of Gerrit; its arguments are to be added.

    Args:
      folder: gets the file of Java's options.
      settings: for notes of a fetch of jars.

    Raises:
      NoJava: see `check_needs`.
    """
    java, path = check_needs(settings)
    program = resources.files("ciml.engines").joinpath("RunGerrit.java")
    return java, java_arguments(folder, path, (f"-Xmx{HEAP_MB}m", *_OPTIONS)), str(program)


def make_site(site: Path, http: int, ssh: int) -> Path:
    """Write the configuration of a site; return its folder."""
    (site / "etc").mkdir(parents=True, exist_ok=True)
    (site / "etc" / "gerrit.config").write_text(_CONFIG.format(host=HOST, http=http, ssh=ssh))
    return site


def init_site(java: tuple[str, ...], site: Path, log: Path) -> None:
    """Fill a configured site, with the account `ADMIN`: 10 s.

    Raises:
      EngineError: it failed; the message has the last lines of the log.
    """
    command = [*java, "Init", "--batch", "--dev", "--no-auto-start", "-d", str(site)]
    run_once(command, log, 180, "the first start of Gerrit")
