"""A real Gerrit for tests, from Maven's jars: Java 17, about 30 s to its first start and 350 MiB."""

from __future__ import annotations

import json
import subprocess
import time
import urllib.error
import urllib.request
from base64 import b64encode
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ciml.engines.processes import lasting_ports
from ciml.engines.servers import GERRIT_ADMIN, gerrit_command, init_gerrit_site, make_gerrit_site
from tests.faults.children import Program
from tests.integrations.gerrit.samples import source

REVIEWER, READER, AUTHOR = ("cleo", "cleo-secret"), ("ci", "ci-http-secret"), ("eve", "eve-secret")


class NoAnswer(Exception):
    """Gerrit does not answer: it may have done what it was asked."""


@dataclass
class Gerrit:
    """A server of its own folder and ports, which may be killed and started again.

    Attributes:
      http, ssh: ports.
      folder: has the files ``key`` and ``known_hosts`` of the account ``ci``, and its HTTP ``password``.
    """

    folder: Path
    program: Program | None = None

    def __post_init__(self) -> None:
        self.http, self.ssh = lasting_ports(2)
        self._site = make_gerrit_site(self.folder / "site", self.http, self.ssh)
        self._java = gerrit_command(self.folder)
        init_gerrit_site(self._java, self._site, self.folder / "gerrit-init.log")
        self.start()
        self._set_up()

    def start(self, most_s: float = 300.0) -> None:
        """Start it, and wait until it answers over HTTP and SSH."""
        command = [*self._java, "Daemon", "-d", str(self._site), "--headless", "--console-log"]
        self.program = Program(command, self.folder / "gerrit.log")
        deadline = time.monotonic() + most_s
        while True:
            try:
                self.ask("GET", "/config/server/version", user=None)
                return
            except NoAnswer:
                if time.monotonic() > deadline or self.program.poll() is not None:
                    raise RuntimeError(f"Gerrit does not start: {self.program.said()}") from None
                time.sleep(0.2)

    def kill(self) -> None:
        """SIGKILL, by its pid."""
        if self.program is not None:
            self.program.kill()

    def ask(self, method: str, path: str, body: Any = None, user: tuple[str, str] | None = GERRIT_ADMIN) -> Any:
        """Ask the REST API. Raises `NoAnswer`; another status than 2xx is a `RuntimeError`."""
        asked = urllib.request.Request(f"http://127.0.0.1:{self.http}{'/a' if user else ''}{path}", method=method)
        if user:
            asked.add_header("Authorization", f"Basic {b64encode(':'.join(user).encode()).decode()}")
        if body is not None:
            asked.add_header("Content-Type", "text/plain" if isinstance(body, str) else "application/json")
            asked.data = (body if isinstance(body, str) else json.dumps(body)).encode()
        try:
            with urllib.request.urlopen(asked, timeout=30) as answer:
                text = answer.read().decode()
        except urllib.error.HTTPError as error:
            raise RuntimeError(f"{method} {path}: {error.code} {error.read().decode()[:300]}") from None
        except (OSError, ValueError) as error:
            raise NoAnswer(str(error)) from None
        return json.loads(text[5:]) if text.startswith(")]}'") and text[5:].strip() else None

    def change(self, subject: str) -> str:
        """Create a change with one file; return its id."""
        made = self.ask("POST", "/changes/", {"project": "demo", "branch": "master", "subject": subject})
        return f"demo~{made['_number']}"

    def vote(self, change: str, value: int, user: tuple[str, str] = REVIEWER) -> None:
        """Vote for Code-Review."""
        self.ask("POST", f"/changes/{change}/revisions/current/review", {"labels": {"Code-Review": value}}, user)

    def project(self, name: str, submit_type: str) -> None:
        """Create a project with the branch main."""
        asked = {"create_empty_commit": True, "branches": ["main"], "submit_type": submit_type}
        self.ask("PUT", f"/projects/{name}", asked)

    def propose(self, project: str, subject: str) -> str:
        """Create a change of the author's to main, with a file of its own in patch set 2; return its id."""
        made = self.ask("POST", "/changes/", {"project": project, "branch": "main", "subject": subject}, AUTHOR)
        change = f"{project}~{made['_number']}"
        self.ask("PUT", f"/changes/{change}/edit/{subject}.txt", "code\n", AUTHOR)
        self.ask("POST", f"/changes/{change}/edit:publish", {}, AUTHOR)
        return change

    def copy_all_votes(self) -> None:
        """Let votes for Code-Review stay with each further patch set, whatever it changes."""
        asked = {"copy_condition": "is:ANY", "commit_message": "Copy votes"}
        self.ask("PUT", "/projects/All-Projects/labels/Code-Review", asked)

    def patch(self, change: str) -> None:
        """Upload a further patch set with other code."""
        self.ask("PUT", f"/changes/{change}/edit/code.txt", "other code\n")
        self.ask("POST", f"/changes/{change}/edit:publish", {})

    def comment(self, change: str, text: str) -> None:
        """Comment as the reviewer, without a vote."""
        self.ask("POST", f"/changes/{change}/revisions/current/review", {"message": text}, REVIEWER)

    def submit(self, change: str, user: tuple[str, str] = GERRIT_ADMIN) -> None:
        """Merge a change."""
        self.ask("POST", f"/changes/{change}/submit", {}, user)

    def _set_up(self) -> None:
        """Make the accounts: ``ci`` reads the stream, ``cleo`` may vote +2; and the project."""
        key = self.folder / "key"
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(key)], check=True)
        (self.folder / "password").write_text(READER[1])
        (self.folder / "password").chmod(0o600)
        reader = {
            "http_password": READER[1],
            "ssh_key": key.with_suffix(".pub").read_text(),
            "groups": ["Service Users"],
        }
        self.ask("PUT", "/accounts/ci", {"name": "CI", "email": "ci@example.org", **reader})
        self.ask("PUT", "/accounts/cleo", {"name": "Cleo", "http_password": REVIEWER[1], "groups": ["Administrators"]})
        author = {"name": "Eve", "email": "eve@example.org", "http_password": AUTHOR[1], "groups": ["Administrators"]}
        self.ask("PUT", "/accounts/eve", author)
        self.ask("PUT", "/projects/demo", {"create_empty_commit": True, "branches": ["master"]})
        hosts = subprocess.run(
            ["ssh-keyscan", "-p", str(self.ssh), "127.0.0.1"], capture_output=True, text=True, check=True
        )  # fmt: skip
        assert hosts.stdout, hosts.stderr
        (self.folder / "known_hosts").write_text(hosts.stdout)

    @property
    def source(self) -> str:
        """The configuration of a source that reads it."""
        return source(self.folder, self.ssh, self.http)
