"""The Gerrit of up.sh: its REST API, and changes pushed to it."""

from __future__ import annotations

import base64
import json
import os
import subprocess
import tempfile
import urllib.error
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

HOST = "127.0.0.1:18080"


class Account(NamedTuple):
    """An account, with its HTTP password."""

    user: str
    password: str


ADMIN, DEVELOPER = Account("admin", "secret"), Account("developer", "developer-secret")


def call(method: str, path: str, body: Any = None, *, account: Account = ADMIN, known: bool = False) -> Any:
    """Return the answer of the REST API; ``known`` accepts that what is made is there already."""
    proof = base64.b64encode(":".join(account).encode()).decode()
    headers = {"Authorization": f"Basic {proof}", "Content-Type": "application/json"}
    data = None if body is None else json.dumps(body).encode()
    asked = urllib.request.Request(f"http://{HOST}/a{path}", data, headers, method=method)
    try:
        with urllib.request.urlopen(asked, timeout=60) as answer:
            return json.loads(answer.read()[5:] or b"null")
    except urllib.error.HTTPError as error:
        if known and error.code == 409:
            return None
        raise RuntimeError(f"{method} {path}: {error.code} {error.read().decode()[:300]}") from None


class Checkout:
    """A clone of a project, removed at the end."""

    def __init__(self, account: Account, project: str) -> None:
        self._account = account
        self._folder = tempfile.TemporaryDirectory()
        self._path = Path(self._folder.name, "clone")
        url = f"http://{account.user}:{account.password}@{HOST}/a/{project}"
        subprocess.run(["git", "clone", "-q", url, str(self._path)], check=True, capture_output=True)

    def __enter__(self) -> Checkout:
        return self

    def __exit__(self, *_: object) -> None:
        self._folder.cleanup()

    def commit(self, message: str, contents: Mapping[str, str]) -> None:
        """Commit files, by path."""
        for path, text in contents.items():
            file = self._path / path
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text)
        self._git("add", "-A")
        self._git("commit", "--allow-empty", "-qm", message)

    def push(self, ref: str) -> str:
        """Push to a ref. Return what the server says."""
        return self._git("push", "origin", f"HEAD:{ref}")

    def _git(self, *arguments: str) -> str:
        name, email = self._account.user, f"{self._account.user}@example.com"
        if name == "admin":
            email = "admin@example.com"
        command = ["git", "-C", str(self._path), "-c", f"user.name={name}", "-c", f"user.email={email}", *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True).stderr


def propose(contents: Mapping[str, str], project: str = "demo", subject: str = "A change") -> str:
    """Push a change of the developer to a project. Return its number."""
    with Checkout(DEVELOPER, project) as checkout:
        checkout.commit(f"{subject}\n\nChange-Id: I{os.urandom(20).hex()}", contents)
        said = checkout.push("refs/for/master")
    return next(word for word in said.split() if "/+/" in word).rsplit("/", 1)[1]


def approve(change: str) -> None:
    """Vote Code-Review+2 as the administrator, which is what Zuul's gate waits for."""
    call("POST", f"/changes/{change}/revisions/current/review", {"labels": {"Code-Review": 2}})


def status(change: str) -> str:
    """Return ``NEW``, ``MERGED`` or ``ABANDONED``."""
    return str(call("GET", f"/changes/{change}")["status"])
