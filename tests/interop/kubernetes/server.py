"""A real kube-apiserver with etcd on loopback, without controllers, and a client of its API."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from ciml.engines.processes import free_ports
from tests.go_programs import go_program

VERSION = "1.36.3"
TOKEN = "ciml-test-token"
HERE = Path(__file__).parent
Resource = dict[str, Any]


def api_server() -> Path:
    """The program, which Go builds into the user's cache; the first build takes 13 minutes of CPU."""
    version = "k8s.io/component-base/version"
    minor = VERSION.split(".")[1]
    flags = f"-s -w -X {version}.gitVersion=v{VERSION} -X {version}.gitMajor=1 -X {version}.gitMinor={minor}"
    return go_program(HERE, "kube-apiserver", "k8s.io/kubernetes/cmd/kube-apiserver", flags=flags, timeout_s=7200)


@dataclass(frozen=True)
class Answer:
    """What the server answered: its status, and its message where it rejects."""

    code: int
    message: str
    resource: Resource = field(default_factory=dict)

    @property
    def accepted(self) -> bool:
        return self.code < 300


class Cluster:
    """A client of the server, with an administrator's rights.

    Args:
      url: of the server.
      kubeconfig: a file for helm.
    """

    def __init__(self, url: str, kubeconfig: Path) -> None:
        self.url, self.kubeconfig = url, kubeconfig
        headers = {"Authorization": f"Bearer {TOKEN}"}
        self.client = httpx.Client(base_url=url, verify=False, headers=headers, timeout=60, trust_env=False)
        self._kinds: dict[str, dict[str, Resource]] = {}

    def apply(self, resource: Resource, *, dry_run: bool = False, namespace: str = "ciml") -> Answer:
        """Apply a resource on the server; a field that its kind does not have is an error."""
        asked = {"fieldManager": "ciml", "force": "true", "fieldValidation": "Strict"}
        if dry_run:
            asked["dryRun"] = "All"
        where = self._path(resource, namespace)
        answer = self.client.patch(
            where, params=asked, json=resource, headers={"Content-Type": "application/apply-patch+yaml"}
        )
        content = answer.json()
        return Answer(answer.status_code, content.get("message", ""), content)

    def get(self, path: str) -> Resource:
        answer = self.client.get(path)
        answer.raise_for_status()
        found: Resource = answer.json()
        return found

    def namespace(self, name: str) -> str:
        """Make a namespace."""
        answer = self.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}})
        assert answer.accepted, answer.message
        return name

    def objects(self, namespace: str) -> dict[str, Resource]:
        """Everything in a namespace, as ``Kind name``, but the server's own."""
        found: dict[str, Resource] = {}
        for group in ["/api/v1", *self._groups()]:
            for kind in self._kinds_of(group).values():
                if not kind["namespaced"] or "list" not in kind["verbs"]:
                    continue
                for each in self.get(f"{group}/namespaces/{namespace}/{kind['name']}")["items"]:
                    found[f"{kind['kind']} {each['metadata']['name']}"] = each
        return {name: each for name, each in found.items() if not name.startswith(("Event ", "Lease "))}

    def define(self, definitions: list[Resource]) -> None:
        """Install definitions of resources, and wait until the server has them."""
        for one in definitions:
            answer = self.apply(one)
            assert answer.accepted, answer.message
        for one in definitions:
            where, until = self._path(one, ""), time.monotonic() + 60
            while True:
                conditions = self.get(where).get("status", {}).get("conditions", [])
                if {"Established": "True"}.items() <= {each["type"]: each["status"] for each in conditions}.items():
                    break
                assert time.monotonic() < until, f"{one['metadata']['name']} is not established: {conditions}"
                time.sleep(0.1)
        self._kinds.clear()

    def _path(self, resource: Resource, namespace: str) -> str:
        version = resource["apiVersion"]
        group = f"/apis/{version}" if "/" in version else f"/api/{version}"
        kind = self._kinds_of(group).get(resource["kind"])
        if kind is None:  # it may have been defined a moment ago
            self._kinds.pop(group, None)
            kind = self._kinds_of(group).get(resource["kind"])
        assert kind is not None, f"the server has no {resource['kind']} in {version}"
        inside = f"/namespaces/{namespace}" if kind["namespaced"] else ""
        return f"{group}{inside}/{kind['name']}/{resource['metadata']['name']}"

    def _groups(self) -> list[str]:
        groups = self.get("/apis")["groups"]
        return [f"/apis/{group['preferredVersion']['groupVersion']}" for group in groups]

    def _kinds_of(self, group: str) -> dict[str, Resource]:
        if group not in self._kinds:
            until = time.monotonic() + 30
            while (answer := self.client.get(group)).status_code in (404, 503) and time.monotonic() < until:
                time.sleep(0.2)  # a group that was just defined is served a moment later
            answer.raise_for_status()
            self._kinds[group] = {each["kind"]: each for each in answer.json()["resources"] if "/" not in each["name"]}
        return self._kinds[group]


@contextmanager
def running(folder: Path) -> Iterator[Cluster]:
    """Start etcd and the server; both end with the block."""
    etcd, openssl = shutil.which("etcd"), shutil.which("openssl")
    if etcd is None or openssl is None:
        pytest.fail("the API server stores its objects in etcd: apt-get install etcd-server openssl", pytrace=False)
    program = api_server()
    port, client_port, peer_port = free_ports(3)
    store, url = f"http://127.0.0.1:{client_port}", f"https://127.0.0.1:{port}"
    subprocess.run([openssl, "genrsa", "-out", folder / "sa.key", "2048"], check=True, capture_output=True)
    (folder / "tokens").write_text(f'{TOKEN},admin,admin,"system:masters"\n')
    commands = (
        [
            etcd, "--data-dir", folder / "etcd", "--listen-client-urls", store, "--advertise-client-urls", store,
            "--listen-peer-urls", f"http://127.0.0.1:{peer_port}", "--unsafe-no-fsync",
        ],
        [
            program, f"--etcd-servers={store}", "--bind-address=127.0.0.1", "--advertise-address=127.0.0.1",
            f"--secure-port={port}", f"--cert-dir={folder / 'certs'}", "--service-cluster-ip-range=10.0.0.0/24",
            f"--service-account-key-file={folder / 'sa.key'}",
            f"--service-account-signing-key-file={folder / 'sa.key'}",
            "--service-account-issuer=https://kubernetes.default.svc", f"--token-auth-file={folder / 'tokens'}",
            "--authorization-mode=RBAC", "--endpoint-reconciler-type=none",
            # What these wait for is done by controllers, of which none runs here.
            "--disable-admission-plugins=ServiceAccount,StorageObjectInUseProtection",
        ],
    )  # fmt: skip
    processes = []
    try:
        for command in commands:
            log = (folder / f"{Path(command[0]).name}.log").open("wb")
            processes.append(subprocess.Popen(command, stdout=log, stderr=log, cwd=folder))
        cluster = Cluster(url, _kubeconfig(folder, url))
        _wait(cluster, processes, folder)
        yield cluster
    finally:
        for process in reversed(processes):
            process.terminate()
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _kubeconfig(folder: Path, url: str) -> Path:
    config: Mapping[str, Any] = {
        "apiVersion": "v1", "kind": "Config", "current-context": "test",
        "clusters": [{"name": "test", "cluster": {"server": url, "insecure-skip-tls-verify": True}}],
        "users": [{"name": "admin", "user": {"token": TOKEN}}],
        "contexts": [{"name": "test", "context": {"cluster": "test", "user": "admin"}}],
    }  # fmt: skip
    path = folder / "kubeconfig"
    path.write_text(yaml.safe_dump(config))
    path.chmod(0o600)
    return path


def _wait(cluster: Cluster, processes: list[subprocess.Popen[bytes]], folder: Path) -> None:
    until = time.monotonic() + 120
    while True:
        try:
            if cluster.client.get("/readyz").status_code == 200:
                return
        except httpx.TransportError:
            pass
        ended = [Path(os.fsdecode(one.args[0])).name for one in processes if one.poll() is not None]  # type: ignore[index]
        logs = "\n".join(path.read_text(errors="replace")[-1500:] for path in folder.glob("*.log"))
        assert not ended, f"ended: {ended}\n{logs}"
        assert time.monotonic() < until, logs
        time.sleep(0.2)
