"""The chart: valid, of one mind with the code, safe, and each of its values changes the object that it should."""

from __future__ import annotations

import copy
import functools
import json
import re
import subprocess
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import click
import jsonschema
import pytest
import yaml

from ciml import __version__, limits
from ciml.cli.main import cli
from ciml.engines.flink.cluster import SETTINGS
from ciml.engines.flink.job_server import OPENED
from ciml.transforms.fetch.policy import FetchPolicy
from ciml.trust import TrustPolicy
from tests.deploy.chart import (
    CHART,
    FLINK,
    FULL,
    KUBERNETES,
    MICRO_BATCHES,
    ROOT,
    Resource,
    containers,
    defaults,
    helm,
    merged,
    pods,
    render,
    template,
    validate,
)
from tests.deploy.definitions import flink_definitions
from tests.deploy.steps import parsed

pytestmark = [pytest.mark.engines, pytest.mark.timeout(900)]
#: Objects that other operators own, which the validator does not know.
FOREIGN = {"FlinkDeployment", "PodMonitor", "PrometheusRule"}


def documents(values: Mapping[str, Any]) -> frozenset[str]:
    """The resources of the chart with these values, as texts."""
    done = template(values)
    assert done.returncode == 0, done.stderr
    return frozenset(done.stdout.split("\n---\n"))


def read(texts: Iterable[str]) -> list[Resource]:
    return [each for text in texts if (each := yaml.load(text, yaml.CSafeLoader))]


FULL_TEXTS, FLINK_TEXTS = (functools.cache(functools.partial(documents, values)) for values in (FULL, FLINK))


@pytest.fixture(scope="session")
def full() -> list[Resource]:
    return read(FULL_TEXTS())


@pytest.fixture(scope="session")
def tensorflow() -> list[Resource]:
    return read(FLINK_TEXTS())


def one(resources: list[Resource], kind: str, name: str) -> Resource:
    (found,) = [each for each in resources if (each["kind"], each["metadata"]["name"]) == (kind, name)]
    return found


# ---- schemas ----


def test_helm_finds_nothing_to_complain_of() -> None:
    done = subprocess.run(
        [helm(), "lint", "--strict", "--kube-version", KUBERNETES, "--values", "-", CHART],
        input=json.dumps(FULL), capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout


def flink_schema() -> dict[str, Any]:
    """The schema of a FlinkDeployment, of the operator's own jar. A key that it does not name is an error."""
    (crd,) = [each for each in flink_definitions() if each["spec"]["names"]["kind"] == "FlinkDeployment"]
    (version,) = crd["spec"]["versions"]
    assert version["name"] == "v1beta1"
    spec: dict[str, Any] = _strict(version["schema"]["openAPIV3Schema"]["properties"]["spec"])
    return spec


def _strict(schema: Any) -> Any:
    if isinstance(schema, list):
        return [_strict(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    made = {key: _strict(value) for key, value in schema.items()}
    if isinstance(schema.get("properties"), dict) and schema.get("type") == "object":
        made.setdefault("additionalProperties", bool(schema.get("x-kubernetes-preserve-unknown-fields")))
    return made


def test_flink_is_as_its_operator_wants_it(full: list[Resource]) -> None:
    validator = jsonschema.Draft202012Validator(flink_schema())
    spec = one(full, "FlinkDeployment", "ciml-flink")["spec"]
    assert [error.message for error in validator.iter_errors(spec)] == []
    for path, value in ((("flinkVersion",), "v1_99"), (("taskManager", "replica"), 1), (("image",), 5)):
        wrong = copy.deepcopy(spec)
        inner = wrong
        for key in path[:-1]:
            inner = inner[key]
        inner[path[-1]] = value
        assert list(validator.iter_errors(wrong)), path


def test_the_rest_is_as_kubernetes_wants_it(full: list[Resource], tensorflow: list[Resource], tmp_path: Path) -> None:
    known = [each for each in [*full, *tensorflow, *render({}), *render(MICRO_BATCHES)] if each["kind"] not in FOREIGN]
    plain = tmp_path / "plain.yaml"
    plain.write_text(yaml.safe_dump_all(known))
    done = validate(plain)
    assert done.returncode == 0, done.stdout + done.stderr
    plain.write_text(plain.read_text().replace("containerPort:", "containerport:"))
    assert validate(plain).returncode != 0


# ---- values ----

#: Values whose change needs other values, and what a string becomes where it may not be any text.
OTHERS: Mapping[str, Any] = {
    "image.pullPolicy": "Always", "data.path": "s3://other/data", "kafka.broker": "other:9092",
    "ingest.engine": "micro-batches", "flink.storage": "s3://other", "models.server": "tensorflow-serving",
    "periodic.compaction.schedule": "@daily", "periodic.retention.schedule": "@daily",
    "periodic.retention.olderThan": "9d", "policies.trust": "", "ingest.storage": "9Gi",
}  # fmt: skip
#: Which objects a value changes; by default those of the part that it is called after.
CHANGED: Mapping[str, str] = {
    "image.registry": "Deployment|CronJob|FlinkDeployment", "image.tag": "Deployment|CronJob|FlinkDeployment",
    "image.pullPolicy": "Deployment|CronJob|FlinkDeployment", "image.pullSecrets": "Deployment|CronJob",
    "data.path": "ConfigMap ciml$", "data.endpoint": "ConfigMap ciml$", "data.secret": "Deployment|CronJob|Flink",
    "kafka.broker": "ConfigMap ciml$", "kafka.secret": "Deployment|CronJob|Flink|ConfigMap ciml$",
    "kafka.topics.events": "Deployment ciml-(ingest|webhooks|mqtt|gerrit)$",
    "kafka.topics.runs": "Deployment ciml-(ingest|predict-.*)$", "kafka.topics.deadLetters": "Deployment ciml-ingest$",
    "kafka.topics.predictions": "Deployment ciml-(predict-.*|feedback)$",
    "feedback.config": "ConfigMap ciml-config$", "policies.fetch": "ConfigMap ciml-config$",
    "policies.trust": "ConfigMap ciml-config$|Deployment ciml-(ingest|trainer-.*)$",
    "ingest.enabled": "ingest|flink|jobserver|jobmanager|taskmanager",
    "ingest.engine": "ingest|flink|jobserver|jobmanager|taskmanager",
    "ingest.storage": "PersistentVolumeClaim", "ingest.storageClass": "PersistentVolumeClaim",
    "flink.parallelism": "Deployment ciml-ingest$", "flink.operatorNamespace": "NetworkPolicy ciml-jobmanager$",
    "flink": "FlinkDeployment ciml-flink$", "trainers": "Deployment ciml-trainer-|ConfigMap ciml-config$",
    "receivers.config": "ConfigMap ciml-config$", "receivers.webhooks.enabled": "ciml-webhooks$",
    "receivers.secret": "Deployment ciml-(webhooks|mqtt|gerrit)$",
    "receivers.resources": "Deployment ciml-(webhooks|mqtt|gerrit)$",
    "receivers.webhooks.replicas": "(Deployment|PodDisruptionBudget) ciml-webhooks$",
    "receivers.webhooks": "Ingress ciml-webhooks$",
    "periodic.backfills": "CronJob ciml-backfill-", "periodic.compaction": "CronJob ciml-compaction$",
    "periodic.retention": "CronJob ciml-retention$",
    "periodic.datasets": "CronJob ciml-dataset-|ConfigMap ciml-config$",
    "periodic": "CronJob", "monitoring.podMonitor": "PodMonitor", "monitoring.rules": "PrometheusRule",
    "monitoring.dashboard": "ConfigMap ciml-dashboard$", "monitoring.namespace": "NetworkPolicy",
    "monitoring.labels": "PodMonitor|PrometheusRule|ConfigMap ciml-dashboard$", "networkPolicies": "NetworkPolicy",
    "podDisruptionBudgets": "PodDisruptionBudget", "serviceAccount.annotations": "ServiceAccount",
    "nodeSelector": "Deployment|CronJob", "tolerations": "Deployment|CronJob", "affinity": "Deployment|CronJob",
    "models.clients": "NetworkPolicy ciml-models$", "models.replicas": "(Deployment|PodDisruptionBudget) ciml-models$",
    "models.server": "Deployment ciml-models$|ConfigMap ciml-config$|PodMonitor",
    "models.image": "Deployment ciml-models$", "models.pollSeconds": "Deployment ciml-models$",
}  # fmt: skip


def leaves(value: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, Any]]:
    for key, each in value.items():
        here = f"{path}.{key}" if path else key
        if isinstance(each, Mapping) and each and key not in ("annotations", "labels", "nodeSelector", "affinity"):
            yield from leaves(each, here)
        else:
            yield here, each


def other(path: str, value: Any) -> Any:
    """Another valid value than this one."""
    if path in OTHERS:
        return OTHERS[path]
    match value:
        case bool():
            return not value
        case int() | float():
            return value + 1
        case list():
            return [] if value else ["--job=other"]
        case Mapping():
            return {"other": "value"} if path not in ("affinity",) else {"podAffinity": {}}
    if path.split(".")[-1] in ("cpu", "memory"):
        return "7m" if path.endswith("cpu") else "7Gi"
    return "other"


def put(path: str, value: Any) -> dict[str, Any]:
    for key in reversed(path.split(".")):
        value = {key: value}
    return dict(value)


def expected(path: str) -> str:
    """What the value may change: the longest entry of `CHANGED` that the path begins with."""
    parts = path.split(".")
    for length in range(len(parts), 0, -1):
        if (prefix := ".".join(parts[:length])) in CHANGED:
            return CHANGED[prefix]
    return f"ciml-{parts[1] if parts[0] == 'receivers' else parts[0]}(-[a-z]+)?$"


def named(texts: Iterable[str]) -> dict[str, Resource]:
    """Resources by kind and name. The digest of the configuration, which restarts pods, does not count."""
    found = {f"{each['kind']} {each['metadata']['name']}": each for each in read(texts)}
    for each in found.values():
        if each["kind"] == "Deployment":
            each["spec"]["template"]["metadata"].pop("annotations", None)
    return found


VALUES = dict(leaves(merged(defaults(), FULL)))


@pytest.mark.parametrize("path", VALUES)
def test_each_value_changes_its_objects(path: str) -> None:
    base, before = FULL, FULL_TEXTS()
    if path in ("models.image", "models.pollSeconds"):
        base, before = FLINK, FLINK_TEXTS()
    after = documents(merged(base, put(path, other(path, VALUES[path]))))
    old, new = named(before - after), named(after - before)
    changed = {name for name in old.keys() | new.keys() if old.get(name) != new.get(name)}
    assert changed, "the value does nothing"
    unexpected = {name for name in changed if not re.search(expected(path), name)}
    assert not unexpected, f"expected {expected(path)} alone"


def test_values_are_checked() -> None:
    for values, message in (
        ({"ingest": {"engine": "spark"}}, "one of 'micro-batches', 'flink'"),
        ({"ingest": {"egnine": "flink"}}, "additional properties 'egnine'"),
        ({"data": {"path": "/data"}}, "/data/path"),
        ({"predict": {"models": [{"label": "stable"}]}}, "missing property 'name'"),
        ({"periodic": {"compaction": {"schedule": "daily"}}}, "/periodic/compaction/schedule"),
        ({"periodic": {"retention": {"olderThan": "a year"}}}, "/periodic/retention/olderThan"),
    ):
        done = template(values)
        assert done.returncode != 0, values
        assert message in done.stderr, done.stderr


def test_every_value_is_in_the_schema_and_documented() -> None:
    schema = json.loads((CHART / "values.schema.json").read_text())
    document = (ROOT / "docs/helm.md").read_text()
    for path in dict(leaves(defaults())):
        inner = schema
        for key in path.split("."):
            inner = inner["properties"][key]
        assert f"`{path}`" in document or any(
            f"`{'.'.join(path.split('.')[:length])}`" in document for length in (1, 2, 3)
        ), path


# ---- of one mind with the code ----


def test_versions_are_those_of_the_code(full: list[Resource]) -> None:
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    assert (chart["version"], chart["appVersion"]) == (__version__, __version__)
    images = {each["image"] for _, each in containers(full) if "image" in each}
    assert images == {
        f"registry.example.org/ciml/{name}:{__version__}" for name in ("services", "serve", "worker", "jobserver")
    }
    spec = one(full, "FlinkDeployment", "ciml-flink")["spec"]
    cluster, presto = ((ROOT / "engines" / f"{name}.pom.xml").read_text() for name in ("cluster", "flink-s3"))
    flink = re.findall(r"<artifactId>flink-[\w-]+</artifactId>\s*<version>([\d.]+)</version>", cluster)
    assert set(flink) == {"1.19.0"}
    assert spec["flinkVersion"] == "v" + "_".join(flink[0].split(".")[:2])
    plugin = spec["podTemplate"]["spec"]["containers"][0]["env"][0]["value"]
    assert plugin == f"flink-s3-fs-presto-{flink[0]}.jar"
    assert f"<artifactId>flink-s3-fs-presto</artifactId>\n      <version>{flink[0]}</version>" in presto


def test_flinks_configuration_is_the_measured_one(full: list[Resource]) -> None:
    configuration = one(full, "FlinkDeployment", "ciml-flink")["spec"]["flinkConfiguration"]
    differs = {
        key: (value, configuration.get(key)) for key, value in SETTINGS.items() if configuration.get(key) != value
    }
    # sizes are the operator's business, and finished jobs are forgotten by Flink's own default
    assert differs.keys() <= {"taskmanager.memory.task.off-heap.size", "jobstore.expiration-time"}, differs
    assert configuration["env.java.opts.all"].split() == [
        f"--add-opens=java.base/{each}=ALL-UNNAMED" for each in OPENED
    ]


def test_commands_have_the_options_that_they_are_given(full: list[Resource], tensorflow: list[Resource]) -> None:
    found = 0
    for _, container in [*containers(full), *containers(tensorflow), *containers(render({}))]:
        if container.get("command", [""])[0] == "ciml":
            parsed([*container["command"][1:], *container["args"]])
            found += 1
    assert found > 20
    with pytest.raises(click.NoSuchOption):
        parsed(["service", "run", "ingest", "--topci=x"])


def _variables(command: click.Command | None) -> set[str]:
    assert command is not None
    found = {str(each.envvar) for each in command.params if each.envvar}
    for inner in getattr(command, "commands", {}).values():
        found |= _variables(inner)
    return found


def test_what_the_environment_says_is_known(full: list[Resource]) -> None:
    context = click.Context(cli)
    known = {"CIML_HOME", "AWS_ENDPOINT_URL_S3"}.union(
        *(_variables(cli.get_command(context, name)) for name in cli.list_commands(context))
    )
    given = [each["name"] for _, container in containers(full) for each in container.get("env", ())]
    named_there = {*one(full, "ConfigMap", "ciml")["data"], *(name for name in given if name.startswith("CIML"))}
    assert named_there <= known, named_there - known


def test_files_that_are_named_are_there(full: list[Resource], tensorflow: list[Resource]) -> None:
    for resources in (full, tensorflow, render(MICRO_BATCHES)):
        files = one(resources, "ConfigMap", "ciml-config")["data"]
        found = {
            each.partition("/etc/ciml/")[2]
            for _, container in containers(resources) for each in container.get("args", ()) if "/etc/ciml/" in each
        }  # fmt: skip
        assert "fetch.toml" in found <= files.keys()
    assert "monitoring.config" in one(tensorflow, "ConfigMap", "ciml-config")["data"]


def test_ports_are_one_everywhere(full: list[Resource]) -> None:
    ingest = dict(each.partition("=")[::2] for each in _args(full, "ciml-ingest"))
    service = one(full, "Service", "ciml-jobserver")
    assert f"flink:{service['metadata']['name']}:{service['spec']['ports'][0]['port']}" == ingest["--engine"]
    assert "--flink-master=" + ingest["--flink-rest"].removeprefix("http://") in _args(full, "ciml-jobserver")
    assert ingest["--workers"] == "localhost:50000"
    assert f"--server=ciml-models:{one(full, 'Service', 'ciml-models')['spec']['ports'][0]['port']}" in _args(
        full, "ciml-predict-cause"
    )
    listened: set[Any] = {8081, 50000}
    for name, container in containers(full):
        ports = {each["name"]: each["containerPort"] for each in container.get("ports", ())}
        listened |= {*ports, *ports.values()}
        for option, port in (("--metrics-port", "metrics"), ("--grpc-port", "grpc"), ("--rest-port", "rest")):
            for each in container.get("args", ()):
                if each.startswith(f"{option}="):
                    assert each == f"{option}={ports[port]}", name
    configuration = one(full, "FlinkDeployment", "ciml-flink")["spec"]["flinkConfiguration"]
    listened |= {int(value) for key, value in configuration.items() if key.endswith(".port")}
    (main,) = one(full, "FlinkDeployment", "ciml-flink")["spec"]["podTemplate"]["spec"]["containers"]
    assert main["ports"] == [{"name": "metrics", "containerPort": int(configuration["metrics.reporter.prom.port"])}]
    policies = [each["spec"] for each in full if each["kind"] == "NetworkPolicy"]
    let_in = {port["port"] for each in policies for rule in each.get("ingress", ()) for port in rule["ports"]}
    assert let_in <= listened
    assert 50000 not in let_in  # Beam's worker pool
    labels = one(full, "FlinkDeployment", "ciml-flink")["spec"]["podTemplate"]["metadata"]["labels"]
    for watched in (one(full, "PodMonitor", "ciml"), one(full, "NetworkPolicy", "ciml-metrics")):
        spec = watched["spec"]
        assert spec.get("selector", spec.get("podSelector"))["matchLabels"].items() <= labels.items()
    closed = one(full, "NetworkPolicy", "ciml-nothing-comes-in")["spec"]
    assert closed["policyTypes"] == ["Ingress"]
    assert "ingress" not in closed


def _args(resources: list[Resource], name: str) -> list[str]:
    return list(one(resources, "Deployment", name)["spec"]["template"]["spec"]["containers"][0]["args"])


def test_selectors_select_their_own_pods_alone(full: list[Resource]) -> None:
    labels = {
        each["metadata"]["name"]: each["spec"]["template"]["metadata"]["labels"]
        for each in full if each["kind"] == "Deployment"
    }  # fmt: skip
    for each in full:
        if each["kind"] in ("Deployment", "PodDisruptionBudget"):
            wanted = each["spec"]["selector"]["matchLabels"]
        elif each["kind"] == "Service":
            wanted = each["spec"]["selector"]
        else:
            continue
        found = [name for name, has in labels.items() if wanted.items() <= has.items()]
        assert found == [each["metadata"]["name"]]


# ---- safe ----


def test_secrets_are_named_and_not_held(full: list[Resource], tmp_path: Path) -> None:
    assert "Secret" not in {each["kind"] for each in full}
    deploy = ROOT / "deploy"
    text = "\n".join(
        path.read_text()
        for path in deploy.rglob("*")
        if path.is_file() and path.suffix not in (".lock", ".json", ".pyc")
    )
    text = re.sub(r"Token: false|secretKey: AWS_\w+", "", text)  # no account is mounted; the name of a key of a Secret
    assert not re.search(r"(?i)(password|secret_?key|access_?key|token)\s*[:=]\s*\S", text)
    held = one(full, "ConfigMap", "ciml-config")["data"]
    for name in ("fetch.toml", "trust.toml"):
        (tmp_path / name).write_text(held[name])
    assert FetchPolicy.load(tmp_path / "fetch.toml").hosts == ("logs.example.org",)
    assert TrustPolicy.load(tmp_path / "trust.toml").digest


def test_nothing_runs_as_root_or_without_bounds(full: list[Resource], tensorflow: list[Resource]) -> None:
    for name, pod in [*pods(full), *pods(tensorflow)]:
        if not name.endswith("taskmanager"):  # which is laid over that of every part
            assert pod["securityContext"]["runAsNonRoot"], name
        for container in [*pod.get("initContainers", ()), *pod["containers"]]:
            security = container["securityContext"]
            assert (security["allowPrivilegeEscalation"], security["capabilities"]) == (False, {"drop": ["ALL"]}), name
            if container["name"] != "flink-main-container":  # whose resources the operator writes
                assert security["readOnlyRootFilesystem"], name
                assert {"cpu", "memory"} <= container["resources"]["requests"].keys(), name
                assert "memory" in container["resources"]["limits"], name
        volumes = {each["name"] for each in pod.get("volumes", ())}
        assert {
            mount["name"] for each in [*pod.get("initContainers", ()), *pod["containers"]]
            for mount in each.get("volumeMounts", ())
        } <= volumes, name  # fmt: skip


def test_what_takes_requests_is_replaced_pod_by_pod_and_the_rest_ends_first(full: list[Resource]) -> None:
    """Two supervisors of one part would do the same work twice; a server that ends first answers nobody."""
    selected = [each["spec"]["selector"] for each in full if each["kind"] == "Service"]
    for each in (one for one in full if one["kind"] == "Deployment"):
        spec = each["spec"]
        (container,) = spec["template"]["spec"]["containers"]
        serves = any(selector.items() <= spec["template"]["metadata"]["labels"].items() for selector in selected)
        assert ("readinessProbe" in container) == serves, each["metadata"]["name"]
        if each["metadata"]["name"] != "ciml-jobserver":  # of which there is one
            assert (spec.get("strategy") != {"type": "Recreate"}) == serves, each["metadata"]["name"]


def test_workers_have_the_memory_that_the_worst_permitted_logs_take() -> None:
    values = defaults()
    size = re.fullmatch(r"(\d+)Gi", values["flink"]["workers"]["limits"]["memory"])
    assert size
    assert int(size[1]) << 30 >= values["flink"]["slots"] * limits.SETTLE_PEAK_BYTES + limits.IDLE_WORKER_BYTES
    assert f"1–{size[1]} GiB" in (ROOT / "docs" / "deploy.md").read_text()
    assert values["models"]["resources"]["limits"]["memory"] == f"{limits.MAX_MODEL_SERVER_RSS >> 30}Gi"
