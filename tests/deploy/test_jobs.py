"""The Kubernetes Jobs of one experiment and of a refresh: Kubernetes takes them, and they do what the commands do."""

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
from ciml.data_root import DataRoot
from ciml.serving.lease import leased
from ciml.serving.registry import Registry
from tests.deploy.chart import FULL, ROOT, documented_job, render, validate
from tests.deploy.steps import HOSTILE, PATH, Learned, check_values, parsed, recorded, recorder
from tests.training.conftest import data, made

__all__ = ["data", "made"]
LOST_NODE = {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]}


def job(name: str) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((ROOT / f"deploy/kubernetes/{name}.yaml").read_text())
    return found


def container(resource: Mapping[str, Any]) -> dict[str, Any]:
    (found,) = resource["spec"]["template"]["spec"]["containers"]
    return dict(found)


def words_of(name: str, environment: Mapping[str, str]) -> list[str]:
    """Return the container's command as a kubelet runs it: $(NAME) replaced by the environment, no shell."""
    one = container(job(name))
    return [
        re.sub(r"\$\((\w+)\)", lambda found: environment[found[1]], each) for each in [*one["command"], *one["args"]]
    ]


@pytest.mark.engines
@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("experiment", {"DATASET": "status", "EXPERIMENT": "wide"}),
        ("refresh", {"DATASET": "status", "MODEL": "status", "WAIT": "1h"}),
    ],
)
def test_the_documented_line_makes_a_job_that_kubernetes_takes(
    name: str, values: dict[str, str], tmp_path: Path
) -> None:
    documented = documented_job(f"{name}.yaml")
    resource, plain = yaml.safe_load(documented), tmp_path / "job.yaml"
    assert {each["name"]: each["value"] for each in container(resource)["env"]} == values
    expected = job(name)
    container(expected)["env"][:] = container(resource)["env"]
    resource["spec"]["template"]["metadata"].pop("creationTimestamp", None)
    assert resource["spec"] == expected["spec"], "kubectl before 1.26 leaves out what it does not know"
    named = documented.replace(f"generateName: ciml-{name}-", f"name: ciml-{name}-x7k2p")
    plain.write_text(named)
    checked = validate(plain)
    assert checked.returncode == 0, checked.stdout + checked.stderr
    plain.write_text(named.replace("podFailurePolicy:", "podFailurepolicy:"))
    assert validate(plain).returncode != 0


def test_a_failed_training_is_not_repeated_and_a_lost_node_is_no_failure() -> None:
    spec = job("experiment")["spec"]
    assert (spec["backoffLimit"], spec["template"]["spec"]["restartPolicy"]) == (0, "Never")
    assert spec["podFailurePolicy"]["rules"] == [LOST_NODE]
    assert 0 < spec["activeDeadlineSeconds"] < spec["ttlSecondsAfterFinished"]


def test_only_a_held_lease_is_tried_again() -> None:
    spec = job("refresh")["spec"]
    failed = {"action": "FailJob", "onExitCodes": {"operator": "NotIn", "values": [6]}}
    assert spec["podFailurePolicy"]["rules"] == [LOST_NODE, failed]
    assert (spec["backoffLimit"], spec["template"]["spec"]["restartPolicy"]) == (6, "Never")


def test_both_run_without_rights_and_within_bounds() -> None:
    pod, other = (job(name)["spec"]["template"]["spec"] for name in ("experiment", "refresh"))
    (one,), (theirs,) = pod.pop("containers"), other.pop("containers")
    assert pod == other
    for name in ("image", "envFrom", "resources", "securityContext", "volumeMounts"):
        assert one[name] == theirs[name]
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
def test_their_settings_are_those_of_the_chart() -> None:
    sources = container(job("experiment"))["envFrom"]  # those of both, by the test above
    assert [(kind, source["name"]) for each in sources for kind, source in each.items()] == [
        ("configMapRef", "ciml"), ("secretRef", "ciml-s3"),
    ]  # fmt: skip
    (settings,) = (
        each["data"] for each in render(FULL) if (each["kind"], each["metadata"]["name"]) == ("ConfigMap", "ciml")
    )
    assert {"CIML_DATA_PATH", "AWS_ENDPOINT_URL_S3"} <= settings.keys()


def train(data: Path, folder: Path, path: str = PATH, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the command of the Job of an experiment."""
    given = {**os.environ, "PATH": path, "TMPDIR": str(folder), "CIML_DATA_PATH": str(data), **environment}
    words = words_of("experiment", environment)
    return subprocess.run(words, env=given, capture_output=True, text=True, cwd=folder, check=False)


@pytest.mark.parametrize("text", HOSTILE)
def test_no_value_is_run(text: str, tmp_path: Path) -> None:
    assert train(tmp_path / "data", tmp_path, recorder(tmp_path), DATASET=text, EXPERIMENT=text).returncode == 2
    check_values(tmp_path, text)
    assert [parsed(words).command.name for words in recorded(tmp_path)] == ["train"]


@pytest.mark.whole
@pytest.mark.timeout(600)
def test_it_trains_what_the_command_trains(tmp_path: Path, learned: Learned, learned_data: Path) -> None:
    shutil.copytree(learned_data, tmp_path / "data")
    shutil.rmtree(tmp_path / "data/experiments" / learned.best / "results")
    done = train(tmp_path / "data", tmp_path, DATASET="cpu", EXPERIMENT=learned.best)
    assert done.returncode == 0, done.stderr
    stored = list((tmp_path / "data/experiments" / learned.best).rglob("result.json"))
    assert [path.read_bytes() for path in stored] == [
        path.read_bytes() for path in (learned_data / "experiments" / learned.best).rglob("result.json")
    ]


def start_refresh(data: DataRoot, pod: str, wait: str) -> subprocess.Popen[str]:
    """Start the command of the Job of a refresh on a host with the name of a pod."""
    environment = {"DATASET": "providers", "MODEL": "m", "WAIT": wait}
    given = {**os.environ, "PATH": PATH, "CIML_DATA_PATH": data.url, **environment}
    words = words_of("refresh", environment)
    named = ["unshare", "--uts", "sh", "-c", 'hostname "$0" && exec "$@"', pod, *words]
    return subprocess.Popen(named, env=given, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def has_host_names() -> bool:
    return subprocess.run(["unshare", "--uts", "hostname", "pod"], capture_output=True, check=False).returncode == 0


@pytest.mark.whole
@pytest.mark.timeout(600)
def test_two_refreshes_share_one_lease(data: DataRoot) -> None:
    if not has_host_names():
        pytest.skip("host names of their own need the right to unshare")
    registry = Registry(data, "m")
    with leased(registry, 600):
        early = start_refresh(data, "ciml-refresh-early", "0s")
        _, words = early.communicate(timeout=200)
        assert early.returncode == 6
        assert f"model 'm' is being trained by process {os.getpid()} on " in words
        assert registry.state.candidates == {}
    pods = {name: start_refresh(data, name, "10min") for name in ("ciml-refresh-a", "ciml-refresh-b")}
    said = {name: pod.communicate(timeout=400)[1] for name, pod in pods.items()}
    assert {name: pod.returncode for name, pod in pods.items()} == dict.fromkeys(pods, 0), said
    waited = [name for name, words in said.items() if "waits: model 'm' is being trained by process" in words]
    assert len(waited) == 1
    (holder,) = set(pods) - set(waited)
    assert f" on {holder}; wait for it" in said[waited[0]]
    assert registry.state.pushed() == [1]
    hosts = [delta["lease"]["host"] for delta in registry.deltas() if delta["kind"] == "lease" and delta["lease"]]
    assert set(hosts[1:]) == set(pods)
