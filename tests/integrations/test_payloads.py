"""Payloads of real systems, which are not part of ciml: ``CIML_PAYLOADS=FOLDER make interop`` tries each file."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from ciml.integrations.github.adapter import PUSH
from tests.integrations import github_samples as github
from tests.integrations import gitlab_samples as gitlab
from tests.integrations.payloads import results

FOLDER = os.environ.get("CIML_PAYLOADS", "")


def write(folder: Path, name: str, data: bytes) -> None:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


def test_a_folder_is_tried_file_by_file(tmp_path: Path) -> None:
    write(tmp_path, "github/a.json", github.job().body)
    write(tmp_path, "github/b.json", github.workflow_run().body)
    write(tmp_path, "github/c.json", b'{"jobs": []}')
    write(tmp_path, "github/d.json", github.job().body)
    write(tmp_path, "github/d.headers.json", b'{"X-GitHub-Event": "push"}')
    write(tmp_path, "gitlab_captured/e.json", gitlab.job(build_status="finished").body)
    write(tmp_path, "other/f.json", gitlab.job().body)
    write(tmp_path, "azure/g.json", b"{}")
    write(tmp_path, "github/schemas/h.json", b"{}")
    example = {"name": "ping", "examples": [{"zen": ""}, {"zen": ""}]}
    write(tmp_path, "api.github.com/index.json", json.dumps([example]).encode())
    found = list(results(tmp_path))
    facts = "branch, change, event, fork, head_project, owner, patchset, pipeline, project"
    ping = ("api.github.com/index.json", "github", "ignored", "a ping only tests the webhook")
    assert found == [
        ping,
        ping,
        ("azure/g.json", "", "no adapter", ""),
        ("github/a.json", "github", "run", "finished failure"),
        ("github/b.json", "github", "update", facts),
        ("github/c.json", "github", "dead letter", "missing_field: header x-github-event"),
        ("github/d.json", "github", "ignored", PUSH),
        ("gitlab_captured/e.json", "gitlab", "dead letter", found[7].detail),
        ("other/f.json", "gitlab", "run", "finished success"),
    ]


@pytest.mark.interop
@pytest.mark.skipif(not FOLDER, reason="CIML_PAYLOADS names no folder of payloads")
def test_no_payload_of_a_real_system_raises() -> None:
    found = list(results(Path(FOLDER)))
    assert found
    assert [one for one in found if one.kind == "raises"] == []
    assert {one.kind for one in found} >= {"run", "ignored"}
