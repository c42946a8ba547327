"""GitHub's and GitLab's APIs and their object stores, as far as fetch needs them: real servers with TLS and names."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

from ciml.events.records import Outcome, RunFacts
from ciml.events.run_id import RunId
from ciml.transforms.fetch.credentials import Credential
from ciml.transforms.fetch.policy import FetchPolicy
from tests.transforms.fetch.certificates import make_certificate
from tests.transforms.fetch.fetching import NOW, fetched, pending
from tests.transforms.fetch.log_server import LogServer, serving

API, BLOBS = "api.example.org", "blobs.example.org"
TOKEN = "t0ken-of-a-robot"
START_US = NOW - 600_000_000
SIGNED = "sig=s1gned"


def listed(number: int, name: str, at_us: int = NOW - 10_000_000, **more: Any) -> dict[str, Any]:
    """An artifact as GitHub lists it, made ten seconds before the job's end."""
    made = datetime.fromtimestamp(at_us / 1e6, UTC).isoformat().replace("+00:00", "Z")
    url = f"https://elsewhere.example.org/{number}/zip"  # never followed
    return {"id": number, "node_id": "x", "name": name, "size_in_bytes": 1, "archive_download_url": url,
            "expired": False, "created_at": made, "workflow_run": {"id": 7}} | more  # fmt: skip


def job(name: str = "test (3.11)", number: int = 42, attempt: int = 1) -> RunFacts:
    """The facts of a job that ended `NOW` and took ten minutes."""
    run_id = RunId("github", str(number), attempt).encode()
    return RunFacts(run_id, str(number), name, outcome="success", source="github", start_us=START_US, end_us=NOW)


class Systems(NamedTuple):
    """The API, its object store, and a policy that allows both with the API's token."""

    api: LogServer
    blobs: LogServer
    policy: FetchPolicy

    @property
    def url(self) -> str:
        return f"https://{API}:{self.api.server_port}"

    @property
    def artifacts(self) -> str:
        return f"{self.url}/repos/o/r/actions/runs/7/artifacts"

    def lists(self, *artifacts: dict[str, Any], run: int = 7) -> None:
        """Put artifacts into the list of a workflow run."""
        for page in range(len(artifacts) // 100 + 1):
            body = {"total_count": len(artifacts), "artifacts": artifacts[100 * page : 100 * page + 100]}
            path = f"/repos/o/r/actions/runs/{run}/artifacts?per_page=100&page={page + 1}"
            self.api.answers[path] = (200, json.dumps(body).encode(), {"Content-Type": "application/json"})

    def stores(self, path: str, body: bytes, status: int = 200) -> None:
        """Put an object into the store, to which a path of the API redirects with a signed address."""
        signed = f"/{path.strip('/').replace('/', '-')}?{SIGNED}"
        self.api.answers[path] = (302, b"", {"Location": f"https://{BLOBS}:{self.blobs.server_port}{signed}"})
        self.blobs.answers[signed] = (status, body, {})

    def artifact(self, number: int, body: bytes, status: int = 200) -> None:
        self.stores(f"/repos/o/r/actions/artifacts/{number}/zip", body, status)

    def fetch(self, *runs: tuple[str, RunFacts], policy: FetchPolicy | None = None) -> tuple[list[Any], list[Outcome]]:
        """Fetch the logs of runs at addresses."""
        pendings = [pending(url, number=number) for number, (url, _) in enumerate(runs)]
        for each, (url, facts) in zip(pendings, runs, strict=True):
            each.mention = facts.replace(log_url=url)
        return fetched(policy or self.policy, pendings, lambda *_: ["127.0.0.1"])


@contextmanager
def systems(folder: Path) -> Iterator[Systems]:
    """Servers that answer until the block ends."""
    certificate = make_certificate(folder, API, BLOBS)
    token = folder / "token"
    token.write_text(f"{TOKEN}\n")
    with (
        serving(lambda: LogServer(certificate=certificate)) as api,
        serving(lambda: LogServer(certificate=certificate)) as blobs,
    ):
        hosts = (f"https://{API}:{api.server_port}", f"https://*.example.org:{blobs.server_port}")
        credential = Credential(f"{API}:{api.server_port}", token_file=str(token))
        yield Systems(api, blobs, FetchPolicy(private_hosts=hosts, ca_file=certificate, credentials=(credential,)))
