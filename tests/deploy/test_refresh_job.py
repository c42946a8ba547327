"""The Kubernetes Job of a refresh: Kubernetes takes it, and two of them at once share the lease of the model."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from ciml import __version__
from ciml.data_root import DataRoot
from ciml.serving.lease import leased
from ciml.serving.registry import Registry
from tests.deploy.chart import ROOT, documented_job, validate
from tests.deploy.steps import PATH
from tests.training.conftest import data, made

__all__ = ["data", "made"]
MANIFEST = ROOT / "deploy/kubernetes/refresh.yaml"


def job() -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load(MANIFEST.read_text())
    return found


def container() -> dict[str, Any]:
    (found,) = job()["spec"]["template"]["spec"]["containers"]
    return dict(found)


def start(data: DataRoot, pod: str, wait: str) -> subprocess.Popen[str]:
    """Start the container's command as a kubelet does, on a host with the name of a pod."""
    one = container()
    environment = {each["name"]: each["value"] for each in one["env"]}
    environment |= {"DATASET": "providers", "MODEL": "m", "WAIT": wait}
    words = [
        re.sub(r"\$\((\w+)\)", lambda found: environment[found[1]], word) for word in [*one["command"], *one["args"]]
    ]
    given = {**os.environ, "PATH": PATH, "CIML_DATA_PATH": data.url, **environment}
    named = ["unshare", "--uts", "sh", "-c", 'hostname "$0" && exec "$@"', pod, *words]
    return subprocess.Popen(named, env=given, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def has_host_names() -> bool:
    return subprocess.run(["unshare", "--uts", "hostname", "pod"], capture_output=True, check=False).returncode == 0


@pytest.mark.engines
@pytest.mark.timeout(600)
def test_the_documented_line_makes_a_job_that_kubernetes_takes(tmp_path: Path) -> None:
    text = documented_job("refresh.yaml")
    (tmp_path / "job.yaml").write_text(text.replace("generateName: ciml-refresh-", "name: ciml-refresh-7xk2p"))
    checked = validate(tmp_path / "job.yaml")
    assert checked.returncode == 0, checked.stdout + checked.stderr


def test_only_a_held_lease_is_tried_again() -> None:
    spec = job()["spec"]
    lost, failed = spec["podFailurePolicy"]["rules"]
    assert lost == {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]}
    assert failed == {"action": "FailJob", "onExitCodes": {"operator": "NotIn", "values": [6]}}
    assert (spec["backoffLimit"], spec["template"]["spec"]["restartPolicy"]) == (6, "Never")


def test_it_has_the_rights_and_bounds_of_the_other_job() -> None:
    other = yaml.safe_load((ROOT / "deploy/kubernetes/experiment.yaml").read_text())["spec"]["template"]["spec"]
    pod = job()["spec"]["template"]["spec"]
    (theirs,), (own,) = other.pop("containers"), pod.pop("containers")
    assert pod == other
    for name in ("image", "envFrom", "resources", "securityContext", "volumeMounts"):
        assert own[name] == theirs[name]
    assert own["image"].endswith(f":{__version__}")


@pytest.mark.whole
@pytest.mark.timeout(600)
def test_two_jobs_share_one_lease(data: DataRoot) -> None:
    if not has_host_names():
        pytest.skip("host names of their own need the right to unshare")
    registry = Registry(data, "m")
    with leased(registry, 600):
        early = start(data, "ciml-refresh-early", "0s")
        _, words = early.communicate(timeout=200)
        assert early.returncode == 6
        assert f"model 'm' is being trained by process {os.getpid()} on " in words
        assert registry.state.candidates == {}
    pods = {name: start(data, name, "10min") for name in ("ciml-refresh-a", "ciml-refresh-b")}
    words_of = {name: pod.communicate(timeout=400)[1] for name, pod in pods.items()}
    assert {name: pod.returncode for name, pod in pods.items()} == dict.fromkeys(pods, 0), words_of
    waited = [name for name, words in words_of.items() if "waits: model 'm' is being trained by process" in words]
    assert len(waited) == 1
    (holder,) = set(pods) - set(waited)
    assert f" on {holder}; wait for it" in words_of[waited[0]]
    assert registry.state.pushed() == [1]
    hosts = [delta["lease"]["host"] for delta in registry.deltas() if delta["kind"] == "lease" and delta["lease"]]
    assert set(hosts[1:]) == set(pods)
