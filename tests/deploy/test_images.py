"""The images: which extras each has, the locked versions by hash, the code's versions, no root."""

from __future__ import annotations

import re
import subprocess
import tomllib
from pathlib import Path

import pytest
from packaging.utils import canonicalize_name

from ciml import __version__
from ciml.engines.flink.job_server import JOB_SERVER_MAIN, OPENED
from tests.project.environment import distributions_of

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
#: The extras of each image.
IMAGES = {
    "recorder": ("record",),
    "services": ("pipelines", "receivers", "tables"),
    "serve": ("serve",),
    "worker": ("pipelines", "dataflow", "train", "serve", "kubeflow", "lineage", "tables"),
}
#: A requirement of a lock: name, version, hashes.
_LOCKED = re.compile(r"^([\w.-]+)==(\S+) \\\n((?:    --hash=sha256:[0-9a-f]{64}(?: \\)?\n)+)", re.M)


def dockerfile(name: str) -> str:
    return (DEPLOY / name / "Dockerfile").read_text()


def locked(path: Path) -> dict[str, tuple[str, str]]:
    """Version and hashes by name."""
    return {canonicalize_name(name): (version, hashes) for name, version, hashes in _LOCKED.findall(path.read_text())}


def lock_of(image: str) -> Path:
    return DEPLOY / "images" / image / "requirements.lock"


def test_versions_are_those_of_the_code() -> None:
    bases = dict(re.findall(r"^ARG (\w+)=(\S+)$", dockerfile("images"), re.M))
    assert bases["BASE"] == "python:3.11-slim-bookworm"
    assert tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["requires-python"] == ">=3.9"
    assert "ARG BASE=flink:1.19.0-" in dockerfile("flink")  # tests/deploy/test_chart.py compares it with the jars
    tags = re.findall(r"ciml/\w+:([\d.]+\d)", "".join(path.read_text() for path in DEPLOY.rglob("Dockerfile")))
    assert set(tags) == {__version__}
    opened = [f"--add-opens=java.base/{each}=ALL-UNNAMED" for each in OPENED]
    assert re.findall(r'"(--add-opens=[^"]+)"', dockerfile("jobserver")) == opened
    assert JOB_SERVER_MAIN in dockerfile("jobserver").splitlines()[-1]


@pytest.mark.parametrize("image", IMAGES)
def test_an_image_has_the_locked_versions_of_its_extras(image: str) -> None:
    whole, own = locked(ROOT / "requirements.lock"), locked(lock_of(image))
    assert len(own) == len(re.findall(r"^[\w.-]+==", lock_of(image).read_text(), re.M)), "a line without hashes"
    assert own.items() <= whole.items()
    assert own.keys() == distributions_of(*IMAGES[image])
    assert not {"pytest", "moto", "mypy", "matplotlib"} & own.keys()


def test_each_image_has_a_lock_and_make_builds_it() -> None:
    assert {path.parent.name for path in (DEPLOY / "images").glob("*/requirements.lock")} == set(IMAGES)
    made = (ROOT / "Makefile").read_text()
    for image, extras in IMAGES.items():
        options = "".join(rf"\s+(?:\\\s+)?--extra {extra}" for extra in extras)
        command = rf"--constraint requirements\.lock{options}\s+(?:\\\s+)?-o deploy/images/{image}/requirements\.lock"
        assert re.search(command, made), image
    assert f"for image in {' '.join(IMAGES)}; do" in made
    assert re.search(rf"IMAGE is {', '.join(list(IMAGES)[:-1])} or {list(IMAGES)[-1]};", dockerfile("images"))


def test_each_base_can_be_pinned_by_digest() -> None:
    for path in DEPLOY.rglob("Dockerfile"):
        stages, text = set[str](), path.read_text()
        for base, stage in re.findall(r"^FROM (\S+)(?: AS (\w+))?$", text, re.M):
            assert base in stages or re.fullmatch(r"\$\{[A-Z]+\}", base), (path, base)
            stages.add(stage)
        last = text.rpartition("\nFROM ")[2]
        if path.parent.name not in ("flink", "dataflow"):  # Flink's changes to its user itself; Dataflow needs root
            assert last.rindex("USER 10001:10001") > max(last.rindex(word) for word in ("COPY", "RUN useradd")), path


def test_the_context_has_what_is_copied_and_nothing_else() -> None:
    """`.dockerignore` excludes everything but these."""
    ignored = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line and line[0] != "#"]
    assert ignored[0] == "*"
    kept = {line.removeprefix("!") for line in ignored[1:]}
    copied = {
        source
        for path in DEPLOY.rglob("Dockerfile")
        for source in re.findall(r"^COPY (?!--from)(\S+) ", path.read_text(), re.M)
    }
    assert copied == {"deploy/images/${IMAGE}/requirements.lock", "dist/ciml-*.whl", "engines/cluster.pom.xml"}
    assert kept == {"deploy/images", "dist/ciml-*.whl", "engines/cluster.pom.xml"}
    tracked = subprocess.run(["git", "ls-files", "dist"], cwd=ROOT, capture_output=True, text=True, check=True)
    assert tracked.stdout == ""
