"""What deploy/ holds: valid by the schemas of Kubernetes and of Flink's operator, and of one mind with the code."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import jsonschema
import platformdirs
import promql_parser
import pytest
import yaml
from filelock import FileLock

from ciml import __version__, limits
from ciml.limits import MAX_MODEL_SERVER_RSS
from cli.main import cli
from engines.flink import cluster_config
from engines.flink.job_server import JOB_SERVER_MAIN, OPENED
from tests.project.test_metrics_document import declared
from transforms.fetch.policy import FetchPolicy

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
KUBERNETES = sorted(path for path in (DEPLOY / "kubernetes").glob("*.yaml") if path.name != "kustomization.yaml")
OPERATOR = "org.apache.flink:flink-kubernetes-operator-api:1.10.0"
VALIDATOR = "kubernetes-validate==1.37.0"  # schemas of many versions, 100 MB: fetched by this test alone


def resources() -> list[dict[str, Any]]:
    return [each for path in KUBERNETES for each in yaml.safe_load_all(path.read_text())]


def resource(kind: str, name: str) -> dict[str, Any]:
    (found,) = [each for each in resources() if (each["kind"], each["metadata"]["name"]) == (kind, name)]
    return found


def pods() -> Iterator[tuple[str, dict[str, Any]]]:
    """(name, pod's spec) of all that runs."""
    for each in resources():
        if each["kind"] == "Deployment":
            yield each["metadata"]["name"], each["spec"]["template"]["spec"]
        elif each["kind"] == "FlinkDeployment":
            yield "every part of Flink", each["spec"]["podTemplate"]["spec"]
            yield "taskmanager", each["spec"]["taskManager"]["podTemplate"]["spec"]


def containers() -> Iterator[tuple[str, dict[str, Any]]]:
    for name, pod in pods():
        for container in pod["containers"]:
            yield name, container


# ---- schemas ----


def flink_schema() -> dict[str, Any]:
    """The schema of a FlinkDeployment, of the operator's own jar. A key that it does not name is an error."""
    folder = platformdirs.user_cache_path("ciml") / "crds" / OPERATOR.replace(":", "-")
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / ".lock"):
        if not list(folder.glob("*.jar")):
            if shutil.which("mvn") is None:
                # As the engines' fixtures: where tests are made to count, what cannot be tested is a failure.
                (pytest.fail if os.environ.get("CI") else pytest.skip)("the operator's schema comes by Maven")
            plugin = "org.apache.maven.plugins:maven-dependency-plugin:3.8.1:copy"
            command = ["mvn", "-q", "-B", plugin, f"-Dartifact={OPERATOR}", f"-DoutputDirectory={folder}"]
            subprocess.run(command, check=True, capture_output=True, timeout=240, cwd=folder)
    (jar,) = folder.glob("*.jar")
    with zipfile.ZipFile(jar) as archive:
        crd = yaml.load(archive.read("META-INF/fabric8/flinkdeployments.flink.apache.org-v1.yml"), yaml.CSafeLoader)
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


@pytest.mark.timeout(300)
def test_flink_is_as_its_operator_wants_it() -> None:
    validator = jsonschema.Draft202012Validator(flink_schema())
    spec = resource("FlinkDeployment", "ciml-flink")["spec"]
    assert [error.message for error in validator.iter_errors(spec)] == []
    for path, value in ((("flinkVersion",), "v1_99"), (("taskManager", "replica"), 1), (("image",), 5)):
        wrong = json.loads(json.dumps(spec))
        inner = wrong
        for key in path[:-1]:
            inner = inner[key]
        inner[path[-1]] = value
        assert list(validator.iter_errors(wrong)), path


@pytest.mark.timeout(300)
def test_the_rest_is_as_kubernetes_wants_it(tmp_path: Path) -> None:
    uv = [str(Path(sys.executable).parent / "uv"), "tool", "run", "--python", sys.executable, "--from", VALIDATOR]
    command = [*uv, "kubernetes-validate", "--strict", "-k", "1.30"]
    plain = tmp_path / "plain.yaml"
    plain.write_text(yaml.safe_dump_all(each for each in resources() if each["kind"] != "FlinkDeployment"))
    done = subprocess.run([*command, str(plain)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    plain.write_text(plain.read_text().replace("containerPort:", "containerport:"))
    assert subprocess.run([*command, str(plain)], capture_output=True, check=False).returncode != 0


def test_the_kustomization_names_every_file() -> None:
    kustomization = yaml.safe_load((DEPLOY / "kubernetes" / "kustomization.yaml").read_text())
    assert sorted(kustomization["resources"]) == [path.name for path in KUBERNETES]
    images = {each["name"] for each in kustomization["images"]}
    assert {one["image"] for _, one in containers() if "image" in one and ":" not in one["image"]} == images


# ---- of one mind with the code ----


def test_flinks_configuration_is_the_measured_one() -> None:
    told = dict(line.split(": ", 1) for line in cluster_config._CONFIGURATION.splitlines() if "{" not in line)
    configuration = resource("FlinkDeployment", "ciml-flink")["spec"]["flinkConfiguration"]
    differs = {key: (value, configuration.get(key)) for key, value in told.items() if configuration.get(key) != value}
    # sizes are the operator's business, and finished jobs are forgotten by Flink's own default
    assert differs.keys() <= {"taskmanager.memory.task.off-heap.size", "jobstore.expiration-time"}, differs
    opened = [f"--add-opens=java.base/{each}=ALL-UNNAMED" for each in OPENED]
    assert configuration["env.java.opts.all"].split() == opened
    assert re.findall(r'"(--add-opens=[^"]+)"', (DEPLOY / "jobserver" / "Dockerfile").read_text()) == opened


def test_versions_are_those_of_the_code() -> None:
    flink = re.findall(r"<artifactId>flink-[\w-]+</artifactId>\s*<version>([\d.]+)</version>", _pom("cluster"))
    assert set(flink) == {"1.19.0"}
    assert f"FROM flink:{flink[0]}-" in (DEPLOY / "flink" / "Dockerfile").read_text()
    spec = resource("FlinkDeployment", "ciml-flink")["spec"]
    assert spec["flinkVersion"] == "v" + "_".join(flink[0].split(".")[:2])
    plugin = spec["podTemplate"]["spec"]["containers"][0]["env"][0]["value"]
    assert plugin == f"flink-s3-fs-presto-{flink[0]}.jar"
    assert f"<artifactId>flink-s3-fs-presto</artifactId>\n      <version>{flink[0]}</version>" in _pom("flink-s3")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    worker = (DEPLOY / "worker" / "Dockerfile").read_text()
    assert set(re.findall(r"^FROM (\S+)", worker, re.M)) == {"python:3.11-slim-bookworm"}
    assert project["requires-python"] == ">=3.11,<3.12"
    makefile = (ROOT / "Makefile").read_text()
    assert re.findall(r"uv==([\d.]+)", worker) == re.findall(r"uv==([\d.]+)", makefile)
    files = [path for path in DEPLOY.rglob("*") if path.suffix == ".yaml" or path.name == "Dockerfile"]
    tags = re.findall(r'(?:ciml/\w+:|newTag: ")([\d.]+\d)', "".join(path.read_text() for path in files))
    assert set(tags) == {__version__}


def _pom(name: str) -> str:
    return (ROOT / "engines" / f"{name}.pom.xml").read_text()


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
    text = (DEPLOY / "worker" / "Dockerfile").read_text()
    assert text.rindex("USER 10001:10001") > text.rindex("COPY")
    assert '"engines.flink.worker_pool", "50000"' in text.splitlines()[-1]
    assert JOB_SERVER_MAIN in (DEPLOY / "jobserver" / "Dockerfile").read_text().splitlines()[-1]


def test_ports_are_one_everywhere() -> None:
    ingest = {each.partition("=")[0]: each.partition("=")[2] for each in _args("ciml-ingest")}
    service = resource("Service", "ciml-jobserver")
    assert f"flink:{service['metadata']['name']}:{service['spec']['ports'][0]['port']}" == ingest["--engine"]
    assert "--flink-master=" + ingest["--flink-rest"].removeprefix("http://") in _args("ciml-jobserver")
    assert ingest["--workers"] == "localhost:50000"
    for name, container in containers():
        named = {each["name"]: each["containerPort"] for each in container.get("ports", ())}
        for option, port in (("--metrics-port", "metrics"), ("--grpc-port", "grpc"), ("--rest-port", "rest")):
            for each in container.get("args", ()):
                if each.startswith(f"{option}="):
                    assert each == f"{option}={named[port]}", name
    # what a policy lets in is listened on, and Beam's worker pool is let in nowhere
    configuration = resource("FlinkDeployment", "ciml-flink")["spec"]["flinkConfiguration"]
    listened = {int(value) for key, value in configuration.items() if key.endswith(".port")} | {8081}
    listened |= {port["containerPort"] for _, each in containers() for port in each.get("ports", ())}
    let_in = {
        port["port"]
        for each in resources() if each["kind"] == "NetworkPolicy"
        for rule in each["spec"].get("ingress", ()) for port in rule["ports"]
    }  # fmt: skip
    assert let_in <= listened
    assert 50000 not in let_in
    (closed,) = [each for each in resources() if each["metadata"]["name"] == "nothing-comes-in"]
    assert closed["spec"] == {"podSelector": {}, "policyTypes": ["Ingress"]}


def _args(name: str) -> list[str]:
    return list(resource("Deployment", name)["spec"]["template"]["spec"]["containers"][0]["args"])


def commands() -> Iterator[tuple[list[str], list[str]]]:
    """(words of a command, its arguments) of containers, and of the documents about running it."""
    for _, container in containers():
        if container.get("command", [""])[0] == "ciml":
            yield container["command"][1:], container["args"]
    for document in ("deploy.md", "metrics.md"):
        for line in re.findall(r"^(?:    |\$ )ciml ([^\n#]+)", (ROOT / "docs" / document).read_text(), re.M):
            words = line.split()
            yield [], words


@pytest.mark.parametrize(("words", "arguments"), commands())
def test_commands_have_the_options_that_they_are_given(words: list[str], arguments: list[str]) -> None:
    command: click.Command = cli
    rest = [*words, *arguments]
    context = click.Context(cli)
    while isinstance(command, click.Group) and rest and (found := command.get_command(context, rest[0])):
        command, rest = found, rest[1:]
    assert command is not cli, rest
    if isinstance(command, click.Group):
        command = command.get_command(context, "run") or command
    command.make_parser(click.Context(command)).parse_args(list(rest))


def test_what_the_environment_says_is_known() -> None:
    known = {"CIML_HOME"}
    context = click.Context(cli)
    for name in cli.list_commands(context):
        known |= _variables(cli.get_command(context, name))
    told = set(resource("ConfigMap", "ciml")["data"])
    told |= {each["name"] for _, one in containers() for each in one.get("env", ()) if each["name"].startswith("CIML")}
    assert told <= known, told - known


def _variables(command: click.Command | None) -> set[str]:
    assert command is not None
    found = {str(one.envvar) for one in command.params if one.envvar}
    for inner in getattr(command, "commands", {}).values():
        found |= _variables(inner)
    return found


def test_secrets_are_named_and_not_held(tmp_path: Path) -> None:
    assert "Secret" not in {each["kind"] for each in resources()}
    text = "\n".join(path.read_text() for path in DEPLOY.rglob("*") if path.is_file() and path.suffix != ".lock")
    assert not re.search(r"(?i)(password|secret_?key|access_?key|token)\s*[:=]\s*\S", text.replace("Token: false", ""))
    policy = tmp_path / "fetch.toml"
    policy.write_text(resource("ConfigMap", "ciml-policies")["data"]["fetch.toml"])
    assert FetchPolicy.load(policy).hosts == ("logs.example.org",)


def test_nothing_runs_as_root_or_without_bounds() -> None:
    for name, pod in pods():
        if name != "taskmanager":  # which is laid over that of every part
            assert pod["securityContext"]["runAsNonRoot"], name
        for container in pod["containers"]:
            security = container["securityContext"]
            assert (security["allowPrivilegeEscalation"], security["capabilities"]) == (False, {"drop": ["ALL"]}), name
            if container["name"] != "flink-main-container":  # whose resources the operator writes
                assert {"cpu", "memory"} <= container["resources"]["requests"].keys(), name
                assert "memory" in container["resources"]["limits"], name


def test_workers_have_the_memory_that_the_worst_permitted_logs_take() -> None:
    flink = resource("FlinkDeployment", "ciml-flink")["spec"]
    slots = int(flink["flinkConfiguration"]["taskmanager.numberOfTaskSlots"])
    (workers,) = [each for _, each in containers() if each["name"] == "workers"]
    size = re.fullmatch(r"(\d+)Gi", workers["resources"]["limits"]["memory"])
    assert size
    assert int(size[1]) << 30 >= slots * limits.SETTLE_PEAK_BYTES + limits.IDLE_WORKER_BYTES
    assert f"1–{size[1]} GiB" in (ROOT / "docs" / "deploy.md").read_text()


def test_the_pod_of_the_model_server_has_the_memory_that_it_may_take() -> None:
    (container,) = resource("Deployment", "ciml-models")["spec"]["template"]["spec"]["containers"]
    assert container["resources"]["limits"]["memory"] == f"{MAX_MODEL_SERVER_RSS >> 30}Gi"


def test_alerts_are_of_metrics_that_there_are() -> None:
    (group,) = yaml.safe_load((DEPLOY / "prometheus" / "alerts.yaml").read_text())["groups"]
    metrics = {**declared(), "up": None}
    used = set()
    for rule in group["rules"]:
        promql_parser.parse(rule["expr"])
        for name in re.findall(r"\b(ciml_\w+|up)\b(?!\")", rule["expr"]):
            base = re.sub(r"_(bucket|count|sum)$", "", name)
            assert base in metrics, f"{rule['alert']}: {name}"
            used.add(base)
        assert rule["labels"]["severity"] in ("page", "ticket")
        assert rule["annotations"]["summary"]
    assert len({rule["alert"] for rule in group["rules"]}) == len(group["rules"])
    assert len(used) > 10
    tried = yaml.safe_load((DEPLOY / "prometheus" / "alerts_test.yaml").read_text())["tests"]
    names = {one["alertname"] for test in tried for one in test["alert_rule_test"]}
    assert names <= {rule["alert"] for rule in group["rules"]}
    with pytest.raises(ValueError, match="unclosed left parenthesis"):
        promql_parser.parse("sum by (a (b)")
