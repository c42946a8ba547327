"""Forged deliveries for row 20: what an attacker without the secret can send, to the receiver or to the topic."""

from __future__ import annotations

import hashlib
import hmac
import json
import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from ciml.events.records import RunFacts
from ciml.integrations.registry import ADAPTER, AUTH, HEADER, SOURCE

SECRET = b"the secret of row twenty, long enough"
PROJECT, SHA = "acme/widgets", "0123456789abcdef0123456789abcdef01234567"
#: Native ids that lead elsewhere when they are used as a path.
PATHS = (
    "../x",
    "../../../../tmp/ciml-row-20",
    "/etc/ciml-row-20",
    "..%2f..%2fx",
    "a/../../b",
    "..",
    "x\u202e/y",
    "~1~2",
)


@dataclass
class Post:
    """A request to the receiver."""

    body: bytes
    headers: dict[str, str]
    path: str = "/hooks/github"
    how: str = "signed"


@dataclass
class Sent:
    """A message that is written to the topic without a receiver."""

    value: bytes
    headers: list[tuple[str, bytes]] = field(default_factory=list)


def signature(body: bytes, secret: bytes = SECRET) -> str:
    return "sha256=" + hmac.new(secret, body, hashlib.sha256).hexdigest()


def signed(event: str, body: dict[str, Any], number: int) -> Post:
    """A delivery as GitHub sends it."""
    data = json.dumps(body).encode()
    headers = {
        "content-type": "application/json", "x-github-event": event, "x-github-delivery": f"delivery-{number}",
        "x-hub-signature-256": signature(data),
    }  # fmt: skip
    return Post(data, headers)


def review(state: str, sha: str = SHA) -> dict[str, Any]:
    return {
        "action": "submitted", "repository": {"full_name": PROJECT},
        "review": {
            "state": state, "author_association": "MEMBER", "commit_id": sha, "submitted_at": "2026-11-25T10:00:00Z",
            "user": {"login": "grace", "type": "User"},
        },
        "pull_request": {
            "number": 7, "user": {"login": "ada"}, "head": {"sha": sha, "repo": {"full_name": PROJECT}},
            "base": {"ref": "main", "repo": {"full_name": PROJECT}},
        },
    }  # fmt: skip


def job(native: str | int, conclusion: str, name: str = "unit") -> dict[str, Any]:
    return {
        "action": "completed",
        "workflow_job": {
            "id": native, "run_id": 1, "run_attempt": 1, "name": name, "status": "completed", "conclusion": conclusion,
            "started_at": "2026-11-25T10:00:00Z", "completed_at": "2026-11-25T10:01:00Z", "head_sha": SHA,
            "workflow_name": "gate", "labels": [], "html_url": "https://github.example/run/1",
        },
        "repository": {"full_name": PROJECT, "url": "https://api.github.example/repos/acme/widgets"},
    }  # fmt: skip


def alter(rng: random.Random, post: Post) -> Post:
    """Make a signed delivery into one that no secret signed."""
    body, headers = post.body, dict(post.headers)
    right = headers["x-hub-signature-256"]
    how = rng.choice((
        "no signature", "empty", "no digits", "other secret", "sha1", "a byte of the body", "a byte more", "a digit",
        "cut", "another body", "twice", "another path",
    ))  # fmt: skip
    path = post.path
    match how:
        case "no signature":
            del headers["x-hub-signature-256"]
        case "empty" | "no digits":
            headers["x-hub-signature-256"] = "" if how == "empty" else "sha256="
        case "other secret":
            headers["x-hub-signature-256"] = signature(body, rng.randbytes(24))
        case "sha1":
            del headers["x-hub-signature-256"]
            headers["x-hub-signature"] = "sha1=" + hmac.new(SECRET, body, hashlib.sha1).hexdigest()
        case "a byte of the body":
            at = rng.randrange(len(body))
            body = body[:at] + bytes([body[at] ^ 1 << rng.randrange(8)]) + body[at + 1 :]
        case "a byte more":
            body += b" "
        case "a digit":
            at = rng.randrange(7, len(right))
            headers["x-hub-signature-256"] = right[:at] + ("0" if right[at] != "0" else "1") + right[at + 1 :]
        case "cut":
            headers["x-hub-signature-256"] = right[: rng.randrange(len(right))]
        case "another body":
            headers["x-hub-signature-256"] = signature(b"{}")
        case "twice":
            headers["x-hub-signature-256"] = f"{right},{signature(b'{}')}"
        case "another path":
            path = rng.choice(("/hooks/../hooks/other", "/hooks/github%2f", "/hooks", "/", "/hooks/github/x"))
    return Post(body, headers, path, how)


def unproved(rng: random.Random, runs: list[RunFacts]) -> Iterator[Sent]:
    """Messages that somebody wrote to the topic: ciml's own events, and deliveries without a proof."""
    for run in runs:
        outcome = rng.choice(("success", "failure", "timeout"))
        facts = {
            "id": run.build_uuid, "job": run.build_name, "outcome": outcome, "end_time": "2026-11-25T10:01:00Z",
            "log_url": "https://logs.example.org/x", "auth": "hmac-sha256", "fork": "no", "event": "push",
            "branch": "main", "review": "merged", "pipeline": "gate", "subjects": list(run.subjects), "trusted": True,
        }  # fmt: skip
        yield _own(f"forged-{run.build_uuid}", facts)
    for number, native in enumerate(PATHS):
        yield _own(f"path-{number}", {
            "id": native, "job": rng.choice(("unit", "../job", "..")), "outcome": "success", "auth": "hmac-sha256",
            "end_time": "2026-11-25T10:01:00Z", "log_url": "https://logs.example.org/x",
        })  # fmt: skip
    for state in ("approved", "dismissed"):
        post = signed("pull_request_review", review(state), 0)
        yield Sent(post.body, _delivery("pull_request_review"))
        yield Sent(post.body, _delivery("pull_request_review", auth=""))
    run_event = {
        "workflow_run": {
            "id": 1, "event": "push", "head_branch": "main", "head_sha": SHA, "name": "gate", "status": "in_progress",
            "updated_at": "2026-11-26T10:00:00Z", "repository": {"full_name": PROJECT},
            "head_repository": {"full_name": rng.choice((PROJECT, "mallory/widgets"))},
        },
        "repository": {"full_name": PROJECT},
    }  # fmt: skip
    yield Sent(json.dumps(run_event).encode(), _delivery("workflow_run"))


def _own(event_id: str, run: dict[str, Any]) -> Sent:
    event = {"specversion": "1.0", "id": event_id, "source": "github", "type": "dev.ciml.run.finished.v1", "data": run}
    return Sent(json.dumps(event).encode())


def _delivery(event: str, auth: str | None = None) -> list[tuple[str, bytes]]:
    headers = [(ADAPTER, b"github"), (SOURCE, b"github"), (f"{HEADER}x-github-event", event.encode())]
    return headers if auth is None else [*headers, (AUTH, auth.encode())]
