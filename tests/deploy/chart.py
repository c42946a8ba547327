"""The chart as helm renders it."""

from __future__ import annotations

import functools
import json
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.go_programs import go_program
from tests.project.test_readme import commands

ROOT = Path(__file__).parents[2]
CHART = ROOT / "deploy/helm/ciml"
KUBERNETES = "1.30"
VALIDATOR = "kubernetes-validate==1.37.0"  # schemas of many versions, 100 MB: fetched by tests of resources alone
Resource = dict[str, Any]

#: Value files that users start from.
EXAMPLES = CHART / "examples"


def example(name: str) -> dict[str, Any]:
    """Return the values of a file of `EXAMPLES`."""
    found: dict[str, Any] = yaml.safe_load((EXAMPLES / f"{name}.yaml").read_text())
    return found


#: The values of each file: the smallest installation, Flink with TensorFlow Serving, and everything on.
MICRO_BATCHES, FLINK, FULL = example("micro-batches"), example("flink"), example("everything")


@functools.cache
def helm() -> Path:
    """Helm 3.22.0; its first build takes a minute and a half."""
    return go_program(Path(__file__).parent / "helm", "helm", "helm.sh/helm/v3/cmd/helm")


def template(values: Mapping[str, Any]) -> subprocess.CompletedProcess[str]:
    """Run ``helm template`` with these values, release and namespace ``ciml``."""
    command = [helm(), "template", "ciml", CHART, "--namespace", "ciml", "--kube-version", KUBERNETES, "--values", "-"]
    return subprocess.run(command, input=json.dumps(values), capture_output=True, text=True, check=False)


def validate(path: Path) -> subprocess.CompletedProcess[str]:
    """Compare a file of resources with the schemas of Kubernetes, unknown keys rejected."""
    uv = [str(Path(sys.executable).parent / "uv"), "tool", "run", "--python", sys.executable, "--from", VALIDATOR]
    command = [*uv, "kubernetes-validate", "--strict", "-k", KUBERNETES, str(path)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def render(values: Mapping[str, Any]) -> list[Resource]:
    """Return the resources of the chart with these values."""
    done = template(values)
    assert done.returncode == 0, done.stderr
    return [each for each in yaml.load_all(done.stdout, yaml.CSafeLoader) if each]


def merged(*values: Mapping[str, Any]) -> dict[str, Any]:
    """Return values in which later ones come before earlier ones, as helm merges files."""
    found: dict[str, Any] = {}
    for one in values:
        for key, value in one.items():
            old = found.get(key)
            both = isinstance(value, Mapping) and isinstance(old, Mapping)
            found[key] = merged(old, value) if both else value  # type: ignore[arg-type]
    return found


def defaults() -> dict[str, Any]:
    """Return the chart's values."""
    found: dict[str, Any] = yaml.safe_load((CHART / "values.yaml").read_text())
    return found


def pods(resources: list[Resource]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield (name, pod's spec) of all that runs."""
    for each in resources:
        name, spec = each["metadata"]["name"], each.get("spec", {})
        if each["kind"] == "Deployment":
            yield name, spec["template"]["spec"]
        elif each["kind"] == "CronJob":
            yield name, spec["jobTemplate"]["spec"]["template"]["spec"]
        elif each["kind"] == "FlinkDeployment":
            yield f"{name} everywhere", spec["podTemplate"]["spec"]
            yield f"{name} taskmanager", spec["taskManager"]["podTemplate"]["spec"]


def containers(resources: list[Resource]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield (name of the pod, container), init containers included."""
    for name, pod in pods(resources):
        for container in [*pod.get("initContainers", ()), *pod["containers"]]:
            yield name, container


def documented_job(name: str) -> str:
    """Return the Job that the line of the documentation makes of a file of deploy/kubernetes, as YAML."""
    lines = commands((ROOT / "docs/kubeflow.md").read_text())
    (line,) = (each for each in lines if "set env" in each and name in each)
    made_by, _, created = line.partition(" | ")
    assert created == "kubectl create -f -"
    if shutil.which("kubectl") is None:
        pytest.fail("the line needs kubectl 1.26 or later: https://kubernetes.io/docs/tasks/tools")
    done = subprocess.run(shlex.split(made_by), capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout
