"""Jenkins: builds of its CloudEvents plugin, with the id that `ciml record` has in the job."""

from __future__ import annotations

import hashlib
from typing import Any
from urllib.parse import quote

import pytest

from ciml.errors import RejectedInput
from tests.integrations.deliveries import event_of
from tests.integrations.reading import runs_of
from tests.integrations.samples import SHA, cloudevent
from tests.integrations.samples import jenkins as sample

WANTED = "url: want job/NAME/, with job/FOLDER/ before it for each folder, and AXIS=VALUE,…/ after it for a matrix"
PAGE = "https://jenkins.example/job/team/job/app/13/"


def one(kind: str = "finalized", **build: Any) -> Any:
    (run,) = runs_of("jenkins", sample(kind, **build)).values()
    return run


def test_every_fact_of_a_finished_build() -> None:
    event = event_of("jenkins", sample(), "jenkins")
    expected = ("jenkins+token e1", "org.jenkinsci.job.finalized", 1795521660000000)
    assert (event.key, event.type, event.time_us) == expected
    (run,) = event.run_facts
    assert run.to_json() == {
        "run_id": "jenkins~jenkins-team%2Fapp-13~1", "build_uuid": "jenkins-team/app-13", "build_name": "app",
        "phase": "finished", "outcome": "success", "result": "SUCCESS", "source": "jenkins", "project": "team/app",
        "branch": "main", "change": SHA, "patchset": SHA, "head": SHA, "log_url": f"{PAGE}artifact/", "url": PAGE,
        "output_url": f"{PAGE}consoleText",
        "start_us": 1795521600250000, "end_us": 1795521660500000, "auth": "token", "adapter": "jenkins",
        "subjects": (f"sha:acme/app/{SHA}",),
    }  # fmt: skip


@pytest.mark.parametrize(
    ("url", "subjects"),
    [
        ("https://github.com/acme/app.git", (f"sha:acme/app/{SHA}",)),
        ("git@github.com:acme/app.git", (f"sha:acme/app/{SHA}",)),
        ("https://git.example/scm/acme/app/", (f"sha:acme/app/{SHA}",)),
        ("app", ()),
        (None, ()),
    ],
)
def test_a_commit_is_named_as_github_does(url: Any, subjects: tuple[str, ...]) -> None:
    assert one(scmState={"url": url, "commit": SHA}).subjects == subjects


def build_of(url: str, number: int = 7, **build: Any) -> Any:
    """Return the run of a build whose event has only what it must have."""
    state = {"number": number, "status": "SUCCESS", "timestamp": 1795521660500, **build}
    (run,) = runs_of("jenkins", cloudevent("org.jenkinsci.job.completed", {"url": url, "build": state})).values()
    return run


def test_the_names_of_folders_may_be_encoded() -> None:
    run = build_of("job/my%20team/job/app%2Bx/", 4)
    assert (run.build_uuid, run.build_name, run.project) == ("jenkins-my team/app+x-4", "app+x", "my team/app+x")
    assert (run.log_url, run.output_url, run.url, run.subjects, run.start_us) == ("", "", "", (), None)


OTHER_URLS = """
job app/ job/app/13 job// job//job/app/ view/all/job/app/ os=linux/ job/app/os=/ job/app/=linux/ job/app/os=a,b/
job/app/os=a,/ job/app/os=linux/py=3/ job/os=linux/app/
"""


@pytest.mark.parametrize("url", ["", ["job/a/"], *OTHER_URLS.split()])
def test_a_job_of_another_form_is_rejected(url: Any) -> None:
    data = {"url": url, "build": {"number": 1, "status": "SUCCESS"}}
    with pytest.raises(RejectedInput, match="url"):
        event_of("jenkins", cloudevent("org.jenkinsci.job.completed", data))


@pytest.mark.parametrize(
    ("url", "branch", "known"),
    [
        ("job/team/job/app/", "origin/main", "main"),
        ("job/team/job/app/", "main", "main"),
        ("job/team/job/app/", "origin/origin/main", "origin/main"),
        ("job/app/job/main/", "main", "main"),
        ("job/app/job/origin%252Fmain/", "origin/main", "origin/main"),  # a multibranch project: the branch's own name
        ("job/app/job/PR-5/", "PR-5", "PR-5"),
    ],
)
def test_a_branch_has_no_name_of_a_remote(url: str, branch: str, known: str) -> None:
    state = {"url": "https://git.example/acme/app.git", "branch": branch, "commit": SHA}
    assert build_of(url, scmState=state).branch == known


def test_a_configuration_of_a_matrix_is_a_job_of_its_own() -> None:
    run = build_of("job/team/job/app/ARCH=x86_64,OS=ubuntu%2022.04/")
    assert (run.build_uuid, run.build_name, run.project) == (
        "jenkins-team/app/ARCH=x86_64,OS=ubuntu 22.04-7", "app/ARCH=x86_64,OS=ubuntu 22.04", "team/app",
    )  # fmt: skip
    assert build_of("job/app/default/").build_uuid == "jenkins-app/default-7"
    assert build_of("job/app/").build_uuid == "jenkins-app-7"  # the build that starts the others


def test_no_two_configurations_share_a_run() -> None:
    """Of what can be beside each other: an axis has no comma and no equals sign, a value no comma."""
    names = ["a=1", "a=1,b=2", "a=1=b", "a=1%2Fb=2", "a=11", "a=1-7", "default", "a=1,b=2,c=3", "b=2,c=3", "a=1%252Cb"]
    found = [build_of(f"job/app/{name}/").build_uuid for name in names]
    found += [native_id("app"), native_id("app", number=17), build_of("job/app/a=1/", 17).build_uuid]
    found += [build_of("job/x/job/app/a=1/").build_uuid, build_of("job/app-a/a=1/").build_uuid]
    assert len(set(found)) == len(found)
    assert build_of("job/app/a=%31/").build_uuid == build_of("job/app/a=1/").build_uuid  # the same name


def native_id(*names: str, number: int = 7) -> str:
    run_id: str = build_of("".join(f"job/{quote(name, safe='')}/" for name in names), number).build_uuid
    return run_id


def test_no_two_jobs_share_a_run() -> None:
    jobs = [("a", "b", "c"), ("a-b", "c"), ("a", "b-c"), ("a-b-c",), ("a%2Fb-c",), ("a", "b-c-7"), ("a%2Fb", "c")]
    ids = [native_id(*job) for job in jobs]
    assert len(set(ids)) == len(jobs)
    assert ids[3] == "jenkins-a-b-c-7"
    assert (
        native_id("x" * 30, "y" * 60, "z" * 60)
        == hashlib.sha256(f"jenkins-{'x' * 30}/{'y' * 60}/{'z' * 60}-7".encode()).hexdigest()
    )
