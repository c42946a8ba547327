"""Which run it is, by the environment of each CI system; and what options say before it."""

from __future__ import annotations

import hashlib
import os
import uuid
from pathlib import Path
from typing import Any

import pytest

from ciml.cli.commands.operate.record import RecordOptions, run_facts
from ciml.errors import CimlError
from ciml.recorder.ci_environment import EnvironmentRun, missing_id, run_of
from tests.recorder.recorded import record

GITHUB = {
    "GITHUB_ACTIONS": "true", "GITHUB_RUN_ID": "77", "GITHUB_RUN_ATTEMPT": "2", "GITHUB_JOB": "unit",
    "GITHUB_WORKFLOW": "CI", "GITHUB_EVENT_NAME": "pull_request", "GITHUB_REPOSITORY": "o/r", "GITHUB_BASE_REF": "main",
    "GITHUB_REF": "refs/pull/12/merge", "GITHUB_REF_NAME": "12/merge", "GITHUB_SHA": "abc", "RUNNER_OS": "Linux",
    "RUNNER_ARCH": "X64", "RUNNER_ENVIRONMENT": "github-hosted", "RUNNER_NAME": "r 1",
    "RUNNER_TRACKING_ID": "github_5b0e",
}  # fmt: skip
GITLAB = {
    "GITLAB_CI": "true", "CI_JOB_ID": "5", "CI_JOB_NAME": "test: [1]", "CI_PIPELINE_SOURCE": "push",
    "CI_PROJECT_PATH": "g/p", "CI_COMMIT_REF_NAME": "main", "CI_COMMIT_SHA": "abc", "CI_RUNNER_DESCRIPTION": "r",
}  # fmt: skip
ZUUL = {
    "ZUUL_BUILD": "5e70", "ZUUL_JOB": "tempest", "ZUUL_PIPELINE": "gate", "ZUUL_PROJECT": "nova", "ZUUL_BRANCH": "main",
    "ZUUL_CHANGE": "42", "ZUUL_PATCHSET": "3",
}  # fmt: skip
JENKINS = {
    "JENKINS_URL": "http://j", "BUILD_TAG": "jenkins-a-b-7", "BUILD_NUMBER": "7", "JOB_NAME": "a/b",
    "JOB_BASE_NAME": "b",
    "BRANCH_NAME": "PR-3", "CHANGE_ID": "3", "CHANGE_TARGET": "main", "GIT_COMMIT": "abc", "NODE_NAME": "n",
}  # fmt: skip


@pytest.mark.parametrize(
    ("environment", "known"),
    [
        (
            GITHUB,
            EnvironmentRun("github", "77/unit/5b0e", "unit", 2,
                  {"pipeline": "CI", "event": "pull_request", "project": "o/r", "branch": "main", "change": "12",
                   "patchset": "abc", "provider": "github-hosted", "flavour": "Linux-X64"}, {"runner": "r 1"}),
        ),
        (
            GITLAB,
            EnvironmentRun("gitlab", "5", "test: [1]", 1,
                  {"pipeline": "push", "event": "push", "project": "g/p", "branch": "main", "change": "abc",
                   "patchset": "abc"}, {"runner": "r"}),
        ),
        (
            ZUUL,
            EnvironmentRun("zuul", "5e70", "tempest", 1,
                  {"pipeline": "gate", "project": "nova", "branch": "main", "change": "42", "patchset": "3"}, {}),
        ),
        (
            JENKINS,
            EnvironmentRun("jenkins", "jenkins-a/b-7", "b", 1,
                  {"project": "a/b", "branch": "main", "change": "3", "patchset": "abc"}, {"runner": "n"}),
        ),
        (
            {**GITHUB, "CIML_SOURCE": "tekton", "CIML_RUN_ID": "uid", "CIML_JOB": "j", "CIML_CHANGE": "9",
             "CIML_ATTEMPT": "4", "RUNNER_NAME": "", "GITHUB_WORKFLOW": "a\x1bb" + "c" * 2000},
            EnvironmentRun("tekton", "uid", "j", 4,
                  {"pipeline": "ab" + "c" * 1022, "event": "pull_request", "project": "o/r", "branch": "main",
                   "change": "9", "patchset": "abc", "provider": "github-hosted", "flavour": "Linux-X64"}, {}),
        ),
    ],
    ids=["github", "gitlab", "zuul", "jenkins", "own"],
)  # fmt: skip
def test_a_run_is_known_by_its_ci_system(environment: dict[str, str], known: EnvironmentRun) -> None:
    assert run_of(environment) == known


def test_a_jenkins_job_without_its_number_has_its_tag() -> None:
    assert run_of({**JENKINS, "BUILD_NUMBER": ""}).native_id == "jenkins-a-b-7"


def test_elsewhere_each_run_has_an_id_of_its_own() -> None:
    first, second = run_of({}), run_of({"GITHUB_RUN_ID": "1", "CI": "true"})
    assert {first.source, second.source} == {"record"}
    assert uuid.UUID(first.native_id) != uuid.UUID(second.native_id)


def plan(labels: dict[str, str] | None = None, command: str = "/usr/bin/make", **options: Any) -> Any:
    pairs = tuple(f"{name}={value}" for name, value in (labels or {}).items())
    return run_facts(RecordOptions(argv=(command,), labels=pairs, **options))


@pytest.fixture
def no_ci(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    for name in [*GITHUB, *GITLAB, *ZUUL, *JENKINS, *(each for each in os.environ if each.startswith("CIML_"))]:
        monkeypatch.delenv(name, raising=False)
    return monkeypatch


@pytest.mark.parametrize(
    ("environment", "said"),
    [
        (GITHUB, True),
        ({**GITHUB, "GITHUB_SERVER_URL": "https://github.com"}, True),
        ({**GITHUB, "CIML_RUN_ID": "4001"}, False),
        ({**GITHUB, "GITHUB_SERVER_URL": "https://github.example.org"}, False),  # has no such expression
        ({**GITHUB, **ZUUL}, False),  # its source is zuul
        (GITLAB, False),
        ({}, False),
    ],
)
def test_a_line_says_how_a_job_of_github_gives_its_id(environment: dict[str, str], said: bool) -> None:
    line = missing_id(environment)
    assert bool(line) == said
    assert not said or line.endswith("CIML_RUN_ID: ${{ job.check_run_id }}")


def test_the_line_is_for_a_recorder_that_sends_an_id_of_its_own(tmp_path: Path) -> None:
    sends = ("--kafka", "127.0.0.1:1", "--flush", "100ms", "--log-dir", str(tmp_path / "logs"))
    hint = f"ciml record: {missing_id(GITHUB)}\n"
    assert hint in record(tmp_path / "a", *sends, command=["true"], env=GITHUB).stderr
    assert hint not in record(tmp_path / "b", *sends, "--run-id", "1", command=["true"], env=GITHUB).stderr
    assert hint not in record(tmp_path / "c", command=["true"], env=GITHUB).stderr


def test_options_go_before_the_environment(no_ci: pytest.MonkeyPatch) -> None:
    assert plan().build_name == "make"
    for name, value in ZUUL.items():
        no_ci.setenv(name, value)
    facts = plan({"change": "7", "size": "big"}, job="j", run_id="r/1")
    assert (facts.run_id, facts.build_name, facts.change, facts.patchset, facts.labels) == (
        "zuul~r%2F1~1", "j", "7", "3", {"size": "big"},
    )  # fmt: skip
    assert plan({"job": "k"}, source="tekton").run_id == "tekton~5e70~1"
    assert plan({"job": "k"}).build_name == "k"


def test_no_environment_keeps_a_command_from_running(no_ci: pytest.MonkeyPatch) -> None:
    hostile = {"CI_JOB_NAME": "é" * 300, "CI_JOB_ID": "1/" * 300, "CI_PROJECT_PATH": "\x1b[31m" * 900,
               "CIML_SOURCE": "My CI / " * 30, "GITLAB_CI": "true", "CIML_ATTEMPT": "-3",
               "CI_COMMIT_SHA": "\udcff"}  # fmt: skip
    for name, value in hostile.items():
        no_ci.setenv(name, value)
    facts = plan()
    assert facts.build_name == "é" * 33
    assert (facts.source, facts.run_id[-2:]) == (("my-ci-" * 11)[:63].strip("-"), "~1")
    assert (facts.project[:10], facts.change) == ("[31m[31m[3", "")
    assert facts.build_uuid == hashlib.sha256(b"1/" * 300).hexdigest()


@pytest.mark.parametrize(
    ("options", "reported"),
    [
        ({"source": "A B"}, "source"),
        ({"job": "j" * 300}, "job: too long for a path"),
        ({"labels": {"a": "x" * 2000}}, "labels.a"),
        ({"run_id": "x" * 300}, "id"),
    ],
)
def test_an_option_that_no_event_can_hold(no_ci: pytest.MonkeyPatch, options: dict[str, Any], reported: str) -> None:
    with pytest.raises(CimlError, match=f"invalid event field: .*{reported}"):
        plan(**options)
