"""The Kubernetes Job of one experiment: Kubernetes and kubectl take it, and its command trains what ciml trains."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from ciml import __version__
from tests.deploy.chart import FULL, ROOT, documented_job, render, validate
from tests.deploy.steps import HOSTILE, PATH, Learned, check_values, parsed, recorded, recorder

MANIFEST = ROOT / "deploy/kubernetes/experiment.yaml"


def job() -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load(MANIFEST.read_text())
    return found


def container(resource: Mapping[str, Any]) -> dict[str, Any]:
    (found,) = resource["spec"]["template"]["spec"]["containers"]
    return dict(found)


def run(data: Path, folder: Path, path: str = PATH, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the container's command as a kubelet does: $(NAME) replaced by the environment, no shell."""
    one = container(job())
    words = [
        re.sub(r"\$\((\w+)\)", lambda found: environment[found[1]], each) for each in [*one["command"], *one["args"]]
    ]
    given = {**os.environ, "PATH": path, "TMPDIR": str(folder), "CIML_DATA_PATH": str(data), **environment}
    return subprocess.run(words, env=given, capture_output=True, text=True, cwd=folder, check=False)


@pytest.mark.engines
@pytest.mark.timeout(600)
def test_the_documented_line_makes_a_job_that_kubernetes_takes(tmp_path: Path) -> None:
    made = documented_job("experiment.yaml")
    resource, plain = yaml.safe_load(made), tmp_path / "job.yaml"
    assert {each["name"]: each["value"] for each in container(resource)["env"]} == {
        "DATASET": "status", "EXPERIMENT": "wide"
    }  # fmt: skip
    expected = job()
    container(expected)["env"][:] = container(resource)["env"]
    resource["spec"]["template"]["metadata"].pop("creationTimestamp", None)
    assert resource["spec"] == expected["spec"], "kubectl before 1.26 leaves out what it does not know"
    named = made.replace("generateName: ciml-experiment-", "name: ciml-experiment-x7k2p")
    plain.write_text(named)
    checked = validate(plain)
    assert checked.returncode == 0, checked.stdout + checked.stderr
    plain.write_text(named.replace("podFailurePolicy:", "podFailurepolicy:"))
    assert validate(plain).returncode != 0


def test_a_failed_training_is_not_repeated_and_a_lost_node_is_no_failure() -> None:
    spec = job()["spec"]
    assert (spec["backoffLimit"], spec["template"]["spec"]["restartPolicy"]) == (0, "Never")
    (rule,) = spec["podFailurePolicy"]["rules"]
    assert rule == {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]}
    assert 0 < spec["activeDeadlineSeconds"] < spec["ttlSecondsAfterFinished"]


def test_it_runs_without_rights_and_within_bounds() -> None:
    pod, one = job()["spec"]["template"]["spec"], container(job())
    assert (pod["securityContext"]["runAsNonRoot"], pod["automountServiceAccountToken"]) == (True, False)
    assert one["securityContext"] == {
        "allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]}
    }  # fmt: skip
    assert one["resources"]["requests"].keys() == {"cpu", "memory"}
    assert one["resources"]["limits"]["memory"] == one["resources"]["requests"]["memory"]
    assert [each["mountPath"] for each in one["volumeMounts"]] == ["/tmp"]
    assert one["image"] == f"registry.example.org/ciml/worker:{__version__}"


@pytest.mark.engines
@pytest.mark.timeout(900)
def test_its_settings_are_those_of_the_chart() -> None:
    references = {name for each in container(job())["envFrom"] for name in (*each, each[next(iter(each))]["name"])}
    assert references == {"configMapRef", "ciml", "secretRef", "ciml-s3"}
    (settings,) = (
        each["data"] for each in render(FULL) if (each["kind"], each["metadata"]["name"]) == ("ConfigMap", "ciml")
    )
    assert {"CIML_DATA_PATH", "AWS_ENDPOINT_URL_S3"} <= settings.keys()


@pytest.mark.parametrize("text", HOSTILE)
def test_no_value_is_run(text: str, tmp_path: Path) -> None:
    assert run(tmp_path / "data", tmp_path, recorder(tmp_path), DATASET=text, EXPERIMENT=text).returncode == 2
    check_values(tmp_path, text)
    assert [parsed(words).command.name for words in recorded(tmp_path)] == ["train"]


@pytest.mark.whole
@pytest.mark.timeout(600)
def test_it_trains_what_the_command_trains(tmp_path: Path, learned: Learned, learned_data: Path) -> None:
    shutil.copytree(learned_data, tmp_path / "data")
    shutil.rmtree(tmp_path / "data/experiments" / learned.best / "results")
    done = run(tmp_path / "data", tmp_path, DATASET="cpu", EXPERIMENT=learned.best)
    assert done.returncode == 0, done.stderr
    stored = list((tmp_path / "data/experiments" / learned.best).rglob("result.json"))
    assert [path.read_bytes() for path in stored] == [
        path.read_bytes() for path in (learned_data / "experiments" / learned.best).rglob("result.json")
    ]
