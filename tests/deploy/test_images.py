"""The images: the locked versions, the code's versions, no root."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

from ciml import __version__
from engines.flink.job_server import JOB_SERVER_MAIN, OPENED

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"


def dockerfile(name: str) -> str:
    return (DEPLOY / name / "Dockerfile").read_text()


def test_versions_are_those_of_the_code() -> None:
    assert "FROM flink:1.19.0-" in dockerfile("flink")  # tests/deploy/test_chart.py compares it with the jars
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    worker = dockerfile("worker")
    assert set(re.findall(r"^FROM (\S+)", worker, re.M)) == {"python:3.11-slim-bookworm"}
    assert project["requires-python"] == ">=3.11,<3.12"
    assert re.findall(r"uv==([\d.]+)", worker) == re.findall(r"uv==([\d.]+)", (ROOT / "Makefile").read_text())
    tags = re.findall(r"ciml/\w+:([\d.]+\d)", "".join(path.read_text() for path in DEPLOY.rglob("Dockerfile")))
    assert set(tags) == {__version__}
    opened = [f"--add-opens=java.base/{each}=ALL-UNNAMED" for each in OPENED]
    assert re.findall(r'"(--add-opens=[^"]+)"', dockerfile("jobserver")) == opened


def test_the_worker_image_has_the_locked_versions() -> None:
    def pinned(path: Path) -> dict[str, str]:
        return {
            name: version + hashes
            for name, version, hashes in re.findall(
                r"^([\w.-]+)==(\S+)[^\n]*\n((?:    --hash=\S+[^\n]*\n)+)", path.read_text(), re.M
            )
        }

    whole, worker = pinned(ROOT / "requirements.lock"), pinned(DEPLOY / "worker" / "requirements.lock")
    assert len(worker) > 100
    assert worker.items() <= whole.items()
    assert not {"pytest", "moto", "mypy", "matplotlib"} & worker.keys()
    text = dockerfile("worker")
    assert text.rindex("USER 10001:10001") > text.rindex("COPY")
    assert '"engines.flink.worker_pool", "50000"' in text.splitlines()[-1]
    assert JOB_SERVER_MAIN in dockerfile("jobserver").splitlines()[-1]
