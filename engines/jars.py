"""Java, and the jars of the engines: fetched once by Maven with the project's poms, then cached."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from importlib import resources
from pathlib import Path

from ciml.errors import EngineError

# Beam's job server uploads its whole class path with every job (160 jars, 13 s), except jars below a folder of this
# name. A cluster has the same jars on its own class path.
_UNSTAGED = Path("gradle", "wrapper")
_OLDEST_JAVA = 17  # Kafka 4's broker needs it


class NoJava(EngineError):
    """This machine cannot run the Java engines; the message names what is missing."""


def find_java() -> str:
    """Return the path of Java: ``$JAVA_HOME``'s, else the first in PATH.

    Raises:
      NoJava: if there is none, it is too old, or ``CIML_NO_JAVA`` is set.
    """
    if os.environ.get("CIML_NO_JAVA", "") not in ("", "0"):
        raise NoJava("CIML_NO_JAVA is set")
    home = os.environ.get("JAVA_HOME")
    java = shutil.which("java", path=f"{home}/bin") if home else shutil.which("java")
    if java is None:
        raise NoJava(f"no Java under JAVA_HOME ({home})" if home else "no Java in PATH")
    try:
        answer = subprocess.run([java, "-version"], capture_output=True, text=True, timeout=30, check=False).stderr
    except (OSError, subprocess.TimeoutExpired) as error:
        raise NoJava(f"{java} cannot be run: {error}") from error
    match = re.search(r'version "(\d+)', answer)
    if match is None or int(match[1]) < _OLDEST_JAVA:
        raise NoJava(f"{java} is version {match[1] if match else 'unknown'}; Java {_OLDEST_JAVA} or later is needed")
    return java


def pom(name: str) -> bytes:
    """Return the Maven pom of an engine (``kafka``, ``flink``, ``cluster``, ``flink-s3``, ``gerrit``): package data."""
    return resources.files("ciml.engines").joinpath(f"{name}.pom.xml").read_bytes()


def jar_folder(name: str) -> Path:
    """Return the cache folder of the jars of a pom, named by its SHA-256; see `class_path`."""
    from platformdirs import user_cache_path

    cache = os.environ.get("CIML_CACHE")
    top = Path(cache) if cache else user_cache_path("ciml")
    folder = top / "jars" / _UNSTAGED if name == "cluster" else top / "jars"
    return folder / f"{name}-{hashlib.sha256(pom(name)).hexdigest()[:16]}"


def class_path(name: str, notify: Callable[[str], None] = lambda _: None) -> str:
    """Return the Java class path of an engine; fetch missing jars by Maven.

    Args:
      name: name of a pom: ``kafka``, ``flink``, ``cluster``, ``flink-s3`` or ``gerrit``.
      notify: called with a phrase when a fetch begins.

    Raises:
      NoJava: if jars are missing, and Maven is missing or fails.
    """
    folder = jar_folder(name)
    if not folder.is_dir():
        _fetch(name, pom(name), folder, notify)
    # Listed in order: a wildcard's order is the file system's and decides which of two equal classes is loaded.
    return os.pathsep.join(sorted(str(jar) for jar in folder.glob("*.jar")))


def _fetch(name: str, pom_xml: bytes, folder: Path, notify: Callable[[str], None]) -> None:
    from filelock import FileLock

    maven = shutil.which("mvn")
    if maven is None:
        raise NoJava(f"the jars of {name} are missing in {folder.parent}; install Maven (mvn) to fetch them")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.with_suffix(".lock")):
        if folder.is_dir():  # another process fetched them meanwhile
            return
        notify(f"fetching the jars of {name} by Maven (once)")
        with tempfile.TemporaryDirectory(prefix=f".{name}-", dir=folder.parent) as work:
            source = Path(work, "pom.xml")
            source.write_bytes(pom_xml)
            command = [maven, "-q", "-B", "-f", str(source), "dependency:copy-dependencies"]
            command += ["-DincludeScope=runtime", f"-DoutputDirectory={work}/jars"]
            process = subprocess.run(command, capture_output=True, text=True, check=False)
            jars = Path(work, "jars")
            if process.returncode != 0 or not any(jars.glob("*.jar")):
                errors = [line for line in (process.stdout + process.stderr).splitlines() if "ERROR" in line]
                reason = errors[0].removeprefix("[ERROR] ")[:300] if errors else f"exit code {process.returncode}"
                raise NoJava(f"Maven failed to fetch the jars of {name}: {reason}")
            os.rename(jars, folder)
