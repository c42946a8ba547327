"""What becomes of real payloads: ``python -m tests.integrations.payloads FOLDER [--files]`` counts them.

Each file below the folder is given to the adapter that the name of a folder above it says, or its content. A file
``X.headers.json`` holds the headers of ``X.json``. Each line of a ``.jsonl`` file is a payload, and so is each example
in an ``index.json`` of the npm package @octokit/webhooks-examples.
"""

from __future__ import annotations

import json
import re
import sys
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from ciml.errors import RejectedInput
from ciml.events.records import Message
from ciml.integrations.adapter import Delivery
from ciml.integrations.registry import adapters, delivered, find_adapter, read_event

#: Folders of schemas, which are no payloads.
_NOT_PAYLOADS = ("schemas", "crds", "signatures")
#: Events of GitHub by the field of the body that only they have, the first that applies.
_GITHUB = (
    ("deployment_status", "deployment_status"), ("workflow_job", "workflow_job"), ("check_run", "check_run"),
    ("workflow_run", "workflow_run"), ("check_suite", "check_suite"), ("review", "pull_request_review"),
    ("pull_request", "pull_request"), ("merge_group", "merge_group"), ("pusher", "push"), ("zen", "ping"),
)  # fmt: skip
_SUFFIXES = (".json", ".jsonl", ".yaml", ".txt")
#: Systems by a word of a folder's name that is no adapter's name.
_WORDS = {"ghes": "github"}
#: Systems by a field of the body, for files in a folder without a name of theirs.
_FIELDS = {"object_kind": "gitlab", "buildset": "zuul", "workflow_job": "github", "check_run": "github"}


class Result(NamedTuple):
    """What became of a payload: of which file below the folder and system, its kind, and facts, rule or reason."""

    file: str
    system: str
    kind: str
    detail: str = ""


def results(folder: Path) -> Iterator[Result]:
    """Yield what becomes of each payload below a folder."""
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder)
        if path.suffix not in _SUFFIXES or path.name.endswith(".headers.json") or {*name.parts} & {*_NOT_PAYLOADS}:
            continue
        for data in path.read_bytes().splitlines() if path.suffix == ".jsonl" else [path.read_bytes()]:
            for system, delivery in _payload(folder.resolve(), path.resolve(), data):
                yield _result(str(name), system, delivery)


def _payload(folder: Path, path: Path, data: bytes) -> Iterator[tuple[str, Delivery]]:
    body = _json(data)
    system = _system(folder, path, body)
    if isinstance(body, list) and all(isinstance(one, dict) and "examples" in one for one in body):  # octokit's index
        for event in body:
            for example in event["examples"]:
                yield system, Delivery(json.dumps(example).encode(), {"x-github-event": event["name"]}, path.name)
        return
    headers = _headers(path)
    if isinstance(body, dict) and isinstance(body.get("headers"), dict):
        headers |= {name.lower(): str(value) for name, value in body["headers"].items()}
        body = body.get("payload", body.get("data"))
        data = json.dumps(body).encode()
    if system == "github" and "x-github-event" not in headers:
        headers |= _github_event(path, body)
    yield system, Delivery(data, headers, path.name)


def _system(folder: Path, path: Path, body: Any) -> str:
    for part in (*reversed(path.relative_to(folder).parts[:-1]), folder.name):
        for word in re.split(r"[^a-z0-9]+", part.lower()):
            if (name := _WORDS.get(word, word)) in adapters():
                return name
    found = [system for field, system in _FIELDS.items() if isinstance(body, dict) and field in body]
    return found[0] if found and found[0] in adapters() else ""


def _github_event(path: Path, body: Any) -> Mapping[str, str]:
    if path.parent.parent.name == "api.github.com":
        return {"x-github-event": path.parent.name}
    found = [event for field, event in _GITHUB if isinstance(body, dict) and field in body]
    return {"x-github-event": found[0]} if found else {}


def _headers(path: Path) -> dict[str, str]:
    found = _json(beside.read_bytes()) if (beside := path.with_suffix(".headers.json")).exists() else {}
    return {name.lower(): str(value) for name, value in found.items()}


def _json(data: bytes) -> Any:
    try:
        return json.loads(data)
    except ValueError:
        return None


def _result(file: str, system: str, delivery: Delivery) -> Result:
    if not system:
        return Result(file, "", "no adapter")
    value, headers = delivered(find_adapter(system), system, delivery.body, delivery.headers, "", delivery.id)
    try:
        event = read_event(Message(0, value, tuple(headers)))
    except RejectedInput as rejected:
        return Result(file, system, "dead letter", f"{rejected.reason}: {rejected.detail}")
    except Exception as error:  # noqa: BLE001  # what no adapter may raise
        return Result(file, system, "raises", f"{type(error).__name__}: {error}")
    for _, fault in event.rejections:
        return Result(file, system, "dead letter", f"{fault.reason}: {fault.detail}")
    for facts in event.run_facts:
        return Result(file, system, "run", f"{facts.phase} {facts.outcome or ''}".strip())
    for update in event.updates:
        return Result(file, system, "update", ", ".join(sorted(update.facts)))
    return Result(file, system, "ignored", event.ignored)


def main() -> None:
    found = list(results(Path(sys.argv[1])))
    if "--files" in sys.argv:
        print("\n".join(f"{one.file}  {one.kind}  {one.detail}" for one in found))
    counts = Counter((one.system or "-", one.kind, one.detail) for one in found)
    print(
        "\n".join(f"{count:4}  {system}  {kind}  {detail}" for (system, kind, detail), count in sorted(counts.items()))
    )
    sys.exit(any(one.kind == "raises" for one in found))


if __name__ == "__main__":
    main()
