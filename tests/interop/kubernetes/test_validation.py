"""A real API server accepts every resource of the chart and of Tekton whole, and rejects planted errors.

No controller runs: what is tried is that the server stores the resources as they are written. Nothing is scheduled.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import pytest
import yaml

from tests.deploy.chart import ROOT, Resource, example, render
from tests.interop.kubernetes.server import Cluster

pytestmark = [pytest.mark.interop, pytest.mark.timeout(7200)]
MISSING: Any = object()


def dropped(ours: Any, stored: Any, path: str = "") -> Iterator[str]:
    """Yield the places where a stored resource lacks what was sent. A server writes quantities its own way."""
    if isinstance(ours, dict):
        for key, value in ours.items():
            if not isinstance(stored, dict) or key not in stored:
                if value not in ({}, [], None):
                    yield f"{path}.{key}"
            elif key not in ("resources", "sizeLimit"):
                yield from dropped(value, stored[key], f"{path}.{key}")
    elif isinstance(ours, list):
        if not isinstance(stored, list) or len(ours) != len(stored):
            yield path
        else:
            for number, (one, other) in enumerate(zip(ours, stored, strict=True)):
                yield from dropped(one, other, f"{path}[{number}]")
    elif ours != stored:
        yield f"{path}: {stored!r} instead of {ours!r}"


def accept(cluster: Cluster, resources: list[Resource], namespace: str) -> None:
    """Try all resources without storing them, then store them and compare."""
    for dry_run in (True, False):
        for each in resources:
            answer = cluster.apply(each, dry_run=dry_run, namespace=namespace)
            assert answer.accepted, f"{each['kind']} {each['metadata']['name']}: {answer.message}"
            assert list(dropped(each, answer.resource)) == []
        if dry_run:
            assert cluster.objects(namespace).keys() <= {"ConfigMap kube-root-ca.crt", "ServiceAccount default"}
    assert {f"{each['kind']} {each['metadata']['name']}" for each in resources} <= cluster.objects(namespace).keys()


@pytest.mark.parametrize("name", ["micro-batches", "flink", "everything"])
def test_each_value_file_is_accepted(cluster: Cluster, name: str) -> None:
    resources = render(example(name))
    assert len(resources) > 15
    accept(cluster, resources, cluster.namespace(f"chart-{name}"))


def test_tektons_resources_are_accepted(cluster: Cluster) -> None:
    files = sorted((ROOT / "deploy/tekton").glob("*.yaml"))
    resources = [each for path in files for each in yaml.safe_load_all(path.read_text()) if each]
    assert {each["kind"] for each in resources} >= {"Task", "Pipeline"}
    accept(cluster, resources, cluster.namespace("tekton"))


#: A resource of the value file everything.yaml; a place in it; what is put there, or `MISSING`; what the server says.
PLANTED: tuple[tuple[str, str, Any, str], ...] = (
    ("Deployment ciml-ingest", "spec.template.spec.containers.0.livenesProbe", {}, "field not declared in schema"),
    ("Deployment ciml-ingest", "spec.replicas", "two", "expected numeric"),
    ("Deployment ciml-ingest", "spec.selector", MISSING, "spec.selector: Required value"),
    ("Deployment ciml-ingest", "spec.template.spec.containers.0.image", MISSING, "image: Required value"),
    ("Deployment ciml-ingest", "spec.template.spec.containers.0.ports.0.containerPort", 70000, "between 1 and 65535"),
    ("Deployment ciml-ingest", "spec.template.spec.containers.0.volumeMounts.0.name", "hme", "Not found"),
    ("Deployment ciml-ingest", "spec.template.spec.containers.0.resources.limits.memory", "2GB", "quantit"),
    ("Deployment ciml-ingest", "spec.template.spec.containers.0.resources.limits.memory", "1Mi", "memory limit"),
    ("Deployment ciml-ingest", "spec.strategy", {"type": "Recreate", "rollingUpdate": {"maxSurge": 1}}, "Forbidden"),
    ("Deployment ciml-ingest", "spec.template.metadata.labels.ciml/metrics", "yes please", "a valid label must be"),
    ("ConfigMap ciml-config", "data.a/b", "x", "a valid config key must consist of"),
    ("Service ciml-models", "spec.ports.0.port", 0, "between 1 and 65535"),
    ("Service ciml-models", "spec.ports.1.name", "grpc", "Duplicate value"),
    ("Ingress ciml-webhooks", "spec.rules.0.http.paths.0.path", "hooks", "must be an absolute path"),
    ("NetworkPolicy ciml-models", "spec.ingress.0.ports.0.port", 85000, "between 1 and 65535"),
    ("NetworkPolicy ciml-models", "spec.ingress.0.from.0.podSelektor", {}, "field not declared in schema"),
    ("PodDisruptionBudget ciml-models", "spec.maxUnavailable", 1, "cannot be both set"),
    ("PersistentVolumeClaim ciml-ingest", "spec.accessModes", ["ReadWriteTwice"], "supported values"),
    ("CronJob ciml-compaction", "spec.schedule", "61 * * * *", "above maximum"),
    ("CronJob ciml-compaction", "spec.timeZone", "Mars/Olympus", "unknown time zone"),
    ("Role ciml-flink", "rules.0.verbs", [], "verbs must contain at least one value"),
    ("RoleBinding ciml-flink", "roleRef.kind", "Rolle", "supported values"),
    ("FlinkDeployment ciml-flink", "spec.flinkVersion", "v1_99", "Unsupported value"),
    ("FlinkDeployment ciml-flink", "spec.taskManager.replica", 1, "field not declared in schema"),
    ("PodMonitor ciml", "spec.selector", MISSING, "spec.selector: Required value"),
    ("PodMonitor ciml", "spec.podMetricsEndpoints.0.pth", "/metrics", "field not declared in schema"),
    ("PrometheusRule ciml", "spec.groups.0.name", MISSING, "omits all key fields"),
    ("PrometheusRule ciml", "spec.groups.0.rules.0.for", "5 minutes", "spec.groups[0].rules[0].for"),
    ("Task ciml-run-training", "spec.steps.0.imag", "x", "field not declared in schema"),
    ("Task ciml-run-training", "spec.params.0.type", 5, "spec.params[0].type"),
)  # fmt: skip


def planted(resource: Resource, place: str, value: Any) -> Resource:
    """Return a copy with a value at a place, which may end in a label's name."""
    wrong: Any = copy.deepcopy(resource)
    inner, keys = wrong, place.split(".")
    if "ciml/metrics" in place:
        keys = [*place.removesuffix(".ciml/metrics").split("."), "ciml/metrics"]
    for key in keys[:-1]:
        inner = inner[int(key)] if isinstance(inner, list) else inner[key]
    if value is MISSING:
        del inner[keys[-1]]
    else:
        inner[keys[-1]] = value
    found: Resource = wrong
    return found


def test_planted_errors_are_rejected(cluster: Cluster) -> None:
    tekton = yaml.safe_load_all((ROOT / "deploy/tekton/tasks.yaml").read_text())
    known = {f"{each['kind']} {each['metadata']['name']}": each for each in [*render(example("everything")), *tekton]}
    namespace = cluster.namespace("planted")
    accepted, other = [], []
    for name, place, value, message in PLANTED:
        assert cluster.apply(known[name], dry_run=True, namespace=namespace).accepted, name
        answer = cluster.apply(planted(known[name], place, value), dry_run=True, namespace=namespace)
        if answer.accepted:
            accepted.append(f"{name} {place}")
        elif message.casefold() not in answer.message.casefold():
            other.append(f"{name} {place}: {answer.message}")
    assert accepted == []
    assert other == []
