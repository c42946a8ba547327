"""Definitions of the resources that operators own, as these operators publish them."""

from __future__ import annotations

import re
import shutil
import subprocess
import zipfile
from pathlib import Path
from typing import Any

import platformdirs
import pytest
import yaml
from filelock import FileLock

from tests.go_programs import go_module

FLINK = "org.apache.flink:flink-kubernetes-operator-api:1.10.0"
PROMETHEUS = ("github.com/prometheus-operator/prometheus-operator", "v0.85.0")
TEKTON = "github.com/tektoncd/pipeline"
Definition = dict[str, Any]


def flink_definitions() -> list[Definition]:
    """Those of the Flink Kubernetes operator, from its jar, which Maven fetches once."""
    folder = platformdirs.user_cache_path("ciml") / "crds" / FLINK.replace(":", "-")
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / ".lock"):
        if not list(folder.glob("*.jar")):
            if shutil.which("mvn") is None:
                pytest.fail("the operator's schema comes by Maven: install maven (apt-get install maven)")
            plugin = "org.apache.maven.plugins:maven-dependency-plugin:3.8.1:copy"
            command = ["mvn", "-q", "-B", plugin, f"-Dartifact={FLINK}", f"-DoutputDirectory={folder}"]
            subprocess.run(command, check=True, capture_output=True, timeout=240, cwd=folder)
    (jar,) = folder.glob("*.jar")
    with zipfile.ZipFile(jar) as archive:
        names = [name for name in archive.namelist() if re.fullmatch(r"META-INF/fabric8/.*flink.*-v1\.yml", name)]
        return [yaml.load(archive.read(name), yaml.CSafeLoader) for name in names]


def prometheus_definitions() -> list[Definition]:
    """PodMonitor and PrometheusRule of the Prometheus operator."""
    folder = go_module(*PROMETHEUS) / "example/prometheus-operator-crd"
    return _read([folder / f"monitoring.coreos.com_{name}.yaml" for name in ("podmonitors", "prometheusrules")])


def tekton_definitions() -> list[Definition]:
    """Those of Tekton, of the version whose validation the tests run."""
    text = (Path(__file__).parent / "tekton/go.mod").read_text()
    (version,) = re.findall(rf"{TEKTON} (v\S+)", text)
    return _read(sorted((go_module(TEKTON, version) / "config/300-crds").glob("*.yaml")))


def _read(paths: list[Path]) -> list[Definition]:
    assert paths
    return [each for path in paths for each in yaml.load_all(path.read_text(), yaml.CSafeLoader) if each]
