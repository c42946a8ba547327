"""Artifacts of GitHub and GitLab: a job gets its own log, or none; real servers with TLS, redirects and archives."""

from __future__ import annotations

import gzip
import itertools
import json
import logging
import tempfile
from pathlib import Path
from typing import Any

import pytest

from ciml.errors import LogUnavailableError
from ciml.events.payloads import message_of
from ciml.transforms.fetch.artifacts import JobFacts, artifact_of, artifacts_on
from ciml.transforms.fetch.policy import ARTIFACT_NAMES
from tests.transforms.fetch.fetching import MIB, NOW, only
from tests.transforms.fetch.github import SIGNED, START_US, TOKEN, Systems, job, listed
from tests.transforms.fetch.log_server import LOG, serving
from tests.transforms.fetch.zips import zipped


def zip_of(log: bytes) -> bytes:
    return zipped({"r/run.json": b"{}", "r/dstat-csv_log.txt.gz": gzip.compress(log, mtime=0)}, streamed=True)


def test_the_artifact_of_a_job_is_its_log(both: Systems) -> None:
    both.lists(listed(1, "wheels"), listed(2, "ciml-Test (3.11)"), listed(3, "ciml-other"))
    for body in (zip_of(LOG), LOG, gzip.compress(LOG)):  # a single file stays as it is
        both.artifact(2, body)
        both.api.asked.clear()
        assert both.fetch((both.artifacts, job())) == ([LOG], [])
        assert list(both.api.asked) == [
            "/repos/o/r/actions/runs/7/artifacts?per_page=100&page=1", "/repos/o/r/actions/artifacts/2/zip",
        ]  # fmt: skip
    both.api.answers = {f"/api/v3{path}": answer for path, answer in both.api.answers.items()}  # an enterprise server
    assert both.fetch((both.artifacts.replace("/repos/", "/api/v3/repos/"), job())) == ([LOG], [])


def test_jobs_of_a_run_have_one_address_and_their_own_logs(both: Systems) -> None:
    logs = {"unit": LOG, "lint": LOG * 2, "docs": LOG * 3}
    both.lists(*(listed(at, f"ciml-{name}") for at, name in enumerate(logs, 1)))
    for at, log in enumerate(logs.values(), 1):
        both.artifact(at, zip_of(log))
    runs = [
        (both.artifacts, job(name, number)) for number, name in enumerate(["docs", "unit", "other", "lint", "docs"])
    ]
    runs[4] = runs[0]  # the same event again
    found, settled = both.fetch(*runs)
    assert found == [logs["docs"], logs["unit"], logs["lint"], logs["docs"]]
    assert [(each.run_id, each.reason, each.detail) for each in settled] == [
        ("github~2~1", "log_not_found", "none of 3 artifacts is of this job")
    ]
    assert both.api.asked["/repos/o/r/actions/artifacts/3/zip"] == 1


JOB = JobFacts("42", "test (3.11)", 2, START_US, NOW)


def chosen(*artifacts: dict[str, Any], facts: JobFacts = JOB, names: tuple[str, ...] = ARTIFACT_NAMES) -> int | str:
    found, more = artifacts_on(json.dumps({"artifacts": artifacts}).encode())
    assert not more
    try:
        return artifact_of(facts, found, names).id
    except LogUnavailableError as absent:
        return absent.detail


def test_which_artifact_is_of_a_job() -> None:
    none = "none of 1 artifacts is of this job"
    for name in "ciml ciml- ciml-test ciml-test-3.11-x ciml-test-3.12 xciml-42 ciml-421 dstat ciml-*".split():
        assert chosen(listed(1, name)) == none, name
    for name in ("ciml-42", "CIML 42", "ciml-test-3.11", "dstat_test_3.11"):
        assert chosen(listed(1, name)) == 1, name
    assert chosen(listed(1, "dstat-42"), listed(2, "ciml-test-3-11"), listed(3, "ciml-42")) == 3
    assert chosen(listed(1, "dstat-42"), listed(2, "ciml-test-3-11")) == 2
    assert chosen(listed(1, "ciml"), names=("ciml",)) == 1
    assert chosen(listed(1, "ciml-test-3.11-2"), names=("ciml-{job}-{attempt}",)) == 1
    assert chosen(listed(1, "ciml-test-3.11-1"), names=("ciml-{job}-{attempt}",)) == none
    assert chosen(listed(1, "logs-42-of-n7"), names=("logs-{id}*",)) == 1
    nameless = JobFacts("42", "", 1, None, None)
    assert chosen(listed(1, "ciml"), listed(2, "ciml-"), facts=nameless, names=("ciml-{job}",)) == none.replace(
        "1", "2"
    )
    other = JobFacts("42", "тест", 1, None, None)
    assert chosen(listed(1, "ciml"), listed(2, "ciml-ТЕСТ"), facts=other) == 2


@pytest.mark.parametrize("name", ["all", "*", "a*", "[a-z]*", "?", "{id}"])
def test_a_job_name_is_never_a_pattern(name: str) -> None:
    facts = JobFacts("42", name, 1, None, None)
    others = [listed(1, "unit"), listed(2, "ciml"), listed(3, "a-b"), listed(4, "42")]
    assert chosen(*others, facts=facts, names=("{job}",)) == "none of 4 artifacts is of this job"


def test_an_artifact_is_made_while_its_job_runs() -> None:
    """A rerun that uploads under the same name without overwriting leaves the artifact of the attempt before."""
    none = "none of 1 artifacts is of this job"
    earliest, latest = START_US - 60_000_000, NOW + 60_000_000
    assert [chosen(listed(1, "ciml-42", time_us)) for time_us in (earliest, latest)] == [1, 1]
    assert [chosen(listed(1, "ciml-42", time_us)) for time_us in (earliest - 1_000_000, latest + 1_000_000)] == [
        none
    ] * 2
    made = [listed(number, "ciml-42", NOW - age) for number, age in enumerate((9_000_000, 0, 5_000_000), 1)]
    assert {chosen(*order) for order in itertools.permutations(made)} == {2}  # the newest
    assert chosen(listed(1, "ciml-42", START_US - 61_000_000), facts=JOB._replace(start_us=None)) == 1
    for time in (None, "yesterday", 17, "2026-11-26T00:00:00"):
        assert chosen(listed(1, "ciml-42") | {"created_at": time}) in (1, none)
    assert chosen(listed(1, "ciml-42", expired=True)) == "the artifact of this job has expired"
    assert chosen(listed(1, "ciml-42", expired=True), listed(2, "ciml-test-3.11")) == 2


@pytest.mark.parametrize(
    "entry_of",
    [3, None, [], {}, {"id": "1"}, {"id": True}, {"id": -1}, {"id": 1 << 70}, {"name": 3}, {"name": "x" * 257}],
)
def test_an_entry_that_is_no_artifact_is_left_out(entry_of: Any) -> None:
    broken = listed(1, "ciml-42") | entry_of if isinstance(entry_of, dict) and entry_of else entry_of
    assert chosen(broken, listed(2, "ciml-42")) == 2


@pytest.mark.parametrize("body", [b"", b"<html>", b"[]", b"{}", b'{"artifacts": 3}', b'{"artifacts"', b"[" * 900_000])
def test_a_page_that_is_no_list_is_tried_again_later(both: Systems, body: bytes) -> None:
    with pytest.raises(LogUnavailableError, match="log_unavailable: the answer is not a list of artifacts"):
        artifacts_on(body)
    both.lists()
    both.api.answers = {path: (200, body, {}) for path in both.api.answers}
    assert only(both.fetch((both.artifacts, job()))[1]) == ("deferred", "log_unavailable")


def test_pages_of_a_list(both: Systems) -> None:
    many = [listed(number, f"x{number}") for number in range(1, 2000)]
    both.lists(*many[:350], listed(2000, "ciml-42"))
    both.artifact(2000, zip_of(LOG))
    assert both.fetch((both.artifacts, job())) == ([LOG], [])
    assert len(both.api.asked) == 5
    both.lists(*many)
    both.api.asked.clear()
    assert only(both.fetch((both.artifacts, job()))[1]) == ("deferred", "log_not_found")
    assert len(both.api.asked) == 10
    both.lists(listed(1, "ciml-42") | {"note": "x" * MIB})
    assert only(both.fetch((both.artifacts, job()))[1]) == ("dead_letter", "log_too_large")


def test_a_list_or_an_artifact_that_was_deleted(both: Systems) -> None:
    assert only(both.fetch((both.artifacts, job()))[1]) == ("deferred", "log_not_found")
    both.lists(listed(1, "ciml-42"))
    for status in (404, 410):
        both.api.answers["/repos/o/r/actions/artifacts/1/zip"] = (status, b"{}", {})
        assert only(both.fetch((both.artifacts, job()))[1]) == ("deferred", "log_not_found")
        both.artifact(1, b"", status)
        assert only(both.fetch((both.artifacts, job()))[1]) == ("deferred", "log_not_found")


def test_gitlab(both: Systems) -> None:
    url = f"{both.url}/api/v4/projects/3/jobs/42/artifacts"
    both.stores("/api/v4/projects/3/jobs/42/artifacts", zip_of(LOG))
    both.stores("/api/v4/projects/3/jobs/42/artifacts/logs/dstat.csv", LOG)
    both.stores("/api/v4/projects/3/jobs/42/artifacts/dool.csv", gzip.compress(LOG))
    both.stores("/api/v4/projects/group%2Fname/jobs/42/artifacts", zip_of(LOG))
    named = f"{both.url}/api/v4/projects/group%2Fname/jobs/42/artifacts"
    for address in (url, f"{url}/logs/dstat.csv", f"{url}/", named):
        assert both.fetch((address, job())) == ([LOG], [])


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (zipped({"other": b""}), "log_not_found"),
        (zip_of(LOG)[:-1], "corrupt_archive"),
        (zipped({"dool.csv": gzip.compress(bytes(50 * MIB), mtime=0)}), "log_too_large"),
        (zipped({"dool.csv": gzip.compress(LOG, mtime=0)[:-9]}), "corrupt_gzip"),
        (bytes(17 * MIB), "log_too_large"),
    ],
    ids=lambda value: value if isinstance(value, str) else f"{len(value)}",
)
def test_hostile_archives(both: Systems, body: bytes, reason: str) -> None:
    both.stores("/api/v4/projects/3/jobs/42/artifacts", body)
    kind = "deferred" if reason == "log_not_found" else "dead_letter"
    assert only(both.fetch((f"{both.url}/api/v4/projects/3/jobs/42/artifacts", job()))[1]) == (kind, reason)


def test_an_encoded_archive_is_not_understood(both: Systems) -> None:
    path = "/api/v4/projects/3/jobs/42/artifacts"
    both.api.answers[path] = (200, gzip.compress(zip_of(LOG)), {"Content-Encoding": "gzip"})
    assert only(both.fetch((f"{both.url}{path}", job()))[1]) == ("dead_letter", "log_encoding")
    assert both.api.headers[-1]["Accept-Encoding"] == "identity"


def test_a_cut_archive_is_tried_once_more(both: Systems) -> None:
    body = zipped({"other": bytes(range(256)) * 3000, "dool.csv": LOG}, stored=True)  # beyond what is kept in memory
    path = "/api/v4/projects/3/jobs/42/artifacts"
    cut = (200, b"x" * (len(body) + 1000), {"Content-Length": str(1 << 20)})  # more than it, and less than it announces
    both.api.answers[path] = [cut, (200, body, {})]
    assert both.fetch((f"{both.url}{path}", job())) == ([LOG], [])
    assert both.api.asked[path] == 2


def test_no_room_for_an_archive(both: Systems, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    body = zipped({"other": bytes(range(256)) * 3000, "dool.csv": LOG}, stored=True)
    both.stores("/api/v4/projects/3/jobs/42/artifacts", body)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "none"))
    _, (outcome,) = both.fetch((f"{both.url}/api/v4/projects/3/jobs/42/artifacts", job()))
    assert (outcome.kind, outcome.reason) == ("deferred", "log_unavailable")
    assert outcome.detail == "cannot store the archive: No such file or directory"


def test_a_store_may_be_allowed_for_redirects_alone(both: Systems) -> None:
    api, store = both.policy.private_hosts
    both.lists(listed(1, "ciml-42"))
    both.artifact(1, zip_of(LOG))
    policy = both.policy.replace(private_hosts=(api,))
    assert only(both.fetch((both.artifacts, job()), policy=policy)[1]) == ("dead_letter", "address_not_allowed")
    assert both.blobs.asked == {}
    policy = policy.replace(redirect_hosts=(store,))
    # The store's name leads to a private address here, which only `private_hosts` permit: it is the next check.
    _, (outcome,) = both.fetch((both.artifacts, job()), policy=policy)
    assert (outcome.reason, outcome.detail) == ("address_not_allowed", "it resolves to 127.0.0.1")
    _, (outcome,) = both.fetch((f"https://blobs.example.org:{both.blobs.server_port}/plain", job()), policy=policy)
    assert (outcome.reason, "is not an allowed host" in outcome.detail) == ("address_not_allowed", True)
    with serving() as plain:
        host = f"http://127.0.0.1:{plain.server_port}"
        policy = policy.replace(redirect_hosts=(host,))
        both.api.answers["/repos/o/r/actions/artifacts/1/zip"] = (302, b"", {"Location": f"{host}/plain"})
        assert both.fetch((both.artifacts, job()), policy=policy) == ([LOG], [])
        assert only(both.fetch((f"{host}/plain", job()), policy=policy)[1]) == ("dead_letter", "address_not_allowed")
        assert sum(plain.asked.values()) == 1


def test_no_secret_leaves_its_host_or_is_kept(both: Systems, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    both.lists(listed(1, "ciml-42"), listed(2, "ciml-lint"))
    both.artifact(1, zip_of(LOG))
    both.artifact(2, b"PK\3\4 broken")
    runs = [(both.artifacts, job("x", 42)), (both.artifacts, job("lint", 43)), (both.artifacts, job("none", 44))]
    logs, settled = both.fetch(*runs, policy=both.policy.replace(delays_s=()))
    assert logs == [LOG]
    assert [each.reason for each in settled] == ["corrupt_archive", "log_not_found"]
    assert {each["Authorization"] for each in both.api.headers} == {f"Bearer {TOKEN}"}
    assert len(both.blobs.headers) == 2
    for headers in both.blobs.headers:
        assert sorted(headers) == ["Accept", "Accept-Encoding", "Host", "User-Agent"]
    kept = json.dumps([each.to_json() for each in settled]).encode()
    kept += b"".join(message_of(each.payload or {}, 0).value or b"" for each in settled)
    assert TOKEN.encode() not in kept
    assert "httpcore" in {each.name.partition(".")[0] for each in caplog.records}
    assert TOKEN not in caplog.text
    assert SIGNED.encode() not in kept
