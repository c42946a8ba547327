"""helm against a real API server: install, upgrades between the value files, and what an uninstallation leaves."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.deploy.chart import CHART, EXAMPLES, Resource, example, helm, merged, render
from tests.interop.kubernetes.server import Cluster

pytestmark = [pytest.mark.interop, pytest.mark.timeout(7200)]
#: What the cluster itself and helm keep in a namespace.
OWN = ("ConfigMap kube-root-ca.crt", "ServiceAccount default", "Secret sh.helm.release")
SECRETS = ("ciml-s3", "ciml-kafka")
Helm = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def namespace(cluster: Cluster, request: pytest.FixtureRequest) -> str:
    """A namespace with the Secrets that a user creates first."""
    name = cluster.namespace(request.node.name.replace("_", "-").removeprefix("test-")[:40].rstrip("-"))
    for secret in SECRETS:
        made = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": secret}, "stringData": {"key": "value"}}
        assert cluster.apply(made, namespace=name).accepted
    return name


@pytest.fixture
def run_helm(cluster: Cluster, namespace: str, tmp_path: Path) -> Helm:
    """Runs helm in that namespace."""

    def run(*words: str | Path, fails: bool = False) -> subprocess.CompletedProcess[str]:
        environment = {**os.environ, "KUBECONFIG": str(cluster.kubeconfig), "HOME": str(tmp_path)}
        command = [helm(), *words, "--namespace", namespace]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
        assert (done.returncode != 0) == fails, done.stderr + done.stdout
        return done

    return run


def names(resources: list[Resource]) -> set[str]:
    return {f"{each['kind']} {each['metadata']['name']}" for each in resources}


def installed(cluster: Cluster, namespace: str) -> dict[str, Resource]:
    return {name: one for name, one in cluster.objects(namespace).items() if not name.startswith(OWN)}


def arguments(found: dict[str, Resource], name: str) -> list[str]:
    """The arguments of the only container of a Deployment."""
    (container,) = found[f"Deployment {name}"]["spec"]["template"]["spec"]["containers"]
    return list(container["args"])


def test_install_upgrade_uninstall(cluster: Cluster, namespace: str, run_helm: Helm, tmp_path: Path) -> None:
    secrets = {f"Secret {name}" for name in SECRETS}
    run_helm("install", "ciml", CHART, "--values", EXAMPLES / "micro-batches.yaml")
    found = installed(cluster, namespace)
    assert found.keys() == names(render(example("micro-batches"))) | secrets
    assert "--engine=micro-batches" in arguments(found, "ciml-ingest")
    # from each value file to each other one, and back
    for name in ("flink", "micro-batches", "everything", "flink", "everything", "micro-batches"):
        values = merged(example(name), {"ingest": {"storageClass": ""}})
        path = tmp_path / f"{name}.yaml"
        path.write_text(yaml.safe_dump(values))
        run_helm("upgrade", "ciml", CHART, "--values", path)
        found = installed(cluster, namespace)
        assert found.keys() == names(render(values)) | secrets, name
        assert ("--engine=micro-batches" in arguments(found, "ciml-ingest")) == (name == "micro-batches")
        models = found["Deployment ciml-models"]["spec"]
        images = [each["image"].partition(":")[0] for each in models["template"]["spec"]["containers"]]
        assert ("tensorflow/serving" in images) == (name == "flink")
    run_helm("rollback", "ciml", "2")
    assert installed(cluster, namespace).keys() == names(render(example("flink"))) | secrets
    run_helm("uninstall", "ciml")
    assert installed(cluster, namespace).keys() == secrets  # and what Flink and ciml have written into S3
    assert not [name for name in cluster.objects(namespace) if "sh.helm.release" in name]


def test_an_upgrade_restarts_only_what_changed(
    cluster: Cluster, namespace: str, run_helm: Helm, tmp_path: Path
) -> None:
    def upgrade(values: dict[str, Any]) -> dict[str, int]:
        path = tmp_path / "values.yaml"
        path.write_text(yaml.safe_dump(values))
        run_helm("upgrade", "ciml", CHART, "--install", "--values", path)
        return {
            name.removeprefix("Deployment ciml-"): one["metadata"]["generation"]
            for name, one in installed(cluster, namespace).items() if name.startswith("Deployment")
        }  # fmt: skip

    values = merged(example("everything"), {"ingest": {"storageClass": ""}})
    before = upgrade(values)
    assert upgrade(values) == before
    restarted = {
        part
        for part, generation in upgrade(merged(values, {"feedback": {"config": "dry_run = true\n"}})).items()
        if generation != before[part]
    }
    assert restarted == {"feedback"}


def test_a_volume_keeps_its_storage_class(cluster: Cluster, namespace: str, run_helm: Helm) -> None:
    """Kubernetes changes no class of a volume: such an upgrade fails, and the next one with the old class succeeds."""
    words = ("ciml", CHART, "--values", EXAMPLES / "micro-batches.yaml", "--set")
    run_helm("install", *words, "ingest.storageClass=slow")
    done = run_helm("upgrade", *words, "ingest.storageClass=fast", fails=True)
    assert "PersistentVolumeClaim" in done.stderr
    assert "spec is immutable after creation" in done.stderr
    run_helm("upgrade", *words, "ingest.storageClass=slow")
    volume = installed(cluster, namespace)["PersistentVolumeClaim ciml-ingest"]
    assert volume["spec"]["storageClassName"] == "slow"


def test_wrong_values_change_nothing(cluster: Cluster, namespace: str, run_helm: Helm) -> None:
    before = installed(cluster, namespace)
    done = run_helm("install", "ciml", CHART, "--set", "data.path=/data", fails=True)
    assert "/data/path" in done.stderr
    done = run_helm("install", "ciml", CHART, "--set", "periodic.compaction.schedule=61 * * * *", fails=True)
    assert "above maximum" in done.stderr
    assert installed(cluster, namespace).keys() >= before.keys()
