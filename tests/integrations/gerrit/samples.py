"""Changes as the REST API writes them, events as the stream writes them, and the configuration of a source."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

ADA = {"_account_id": 1, "name": "Ada", "email": "ada@example.org", "username": "ada"}
CLEO = {"_account_id": 2, "name": "Cleo", "email": "cleo@example.org", "username": "cleo"}


PARENT = "0" * 39 + "1"
COMMIT = {
    "parents": [{"commit": PARENT, "subject": "The commit before"}],
    "author": {"name": "Ada", "email": "ada@example.org"},
    "message": "A change\n\nChange-Id: I7\n",
}


def at(when: int) -> str:
    """The API's form of epoch seconds."""
    return datetime.fromtimestamp(when, UTC).strftime("%Y-%m-%d %H:%M:%S.123000000")


def person(account: dict[str, Any]) -> dict[str, Any]:
    return {key: found for key, found in account.items() if key != "_account_id"}


def change(number: int, created: int, **fields: Any) -> dict[str, Any]:
    """An open change of one patch set. Its votes have messages unless ``messages`` are given."""
    said = [
        {"author": each, "date": each["date"], "_revision_number": 1, "message": f"Patch Set 1: {name}{value:+d}"}
        for name, label in fields.get("labels", {}).items()
        for each in label["all"]
        if (value := each.get("value"))
    ]
    return {
        "id": f"demo%2Fapp~{number}", "project": "demo/app", "branch": "main", "change_id": f"I{number:040x}",
        "subject": "A change", "status": "NEW", "created": at(created), "updated": at(created), "_number": number,
        "owner": ADA, "current_revision": "a" * 40, "labels": {}, "messages": said,
        "revisions": {
            "a" * 40: {
                "_number": 1, "created": at(created), "uploader": ADA, "ref": "refs/x", "kind": "REWORK",
                "commit": COMMIT,
            }
        },
        **fields,
    }  # fmt: skip


def vote(account: dict[str, Any], value: int, when: int) -> dict[str, Any]:
    return {**account, "value": value, "date": at(when)}


def message(account: dict[str, Any], text: str, when: int, patchset: int = 1) -> dict[str, Any]:
    return {"id": f"m{when}", "author": account, "date": at(when), "message": text, "_revision_number": patchset}


def event(kind: str, number: int, when: int, **fields: Any) -> dict[str, Any]:
    """An event of the stream."""
    return {
        "type": kind, "eventCreatedOn": when, "project": "demo/app",
        "change": {
            "project": "demo/app", "branch": "main", "number": number, "owner": person(ADA), "status": "NEW",
            "commitMessage": COMMIT["message"],
        },
        "patchSet": {
            "number": 1, "revision": "a" * 40, "parents": [PARENT], "uploader": person(ADA), "kind": "REWORK",
        },
        **fields,
    }  # fmt: skip


def numbers(events: Sequence[bytes]) -> list[int]:
    """Return the numbers of the changes of events."""
    return [json.loads(value)["change"]["number"] for value in events]


def source(folder: Path, ssh: int, rest: int, /, **changes: object) -> str:
    """Return the configuration of a source that reads a server with its account's files in a folder."""
    keys = {
        "receiver": "gerrit", "name": "zuul", "ssh": f"ssh://ci@127.0.0.1:{ssh}", "key_file": str(folder / "key"),
        "known_hosts_file": str(folder / "known_hosts"), "rest": f"http://127.0.0.1:{rest}",
        "secret_file": str(folder / "password"), **changes,
    }  # fmt: skip
    return "\n".join(["[[source]]", *(f"{key} = {json.dumps(value)}" for key, value in keys.items() if value), ""])
