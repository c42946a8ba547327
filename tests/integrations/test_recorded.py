"""A recorder in a job and the event of the same job report one run, where the job can know what its event says."""

from __future__ import annotations

import pytest

from ciml.integrations.adapter import Delivery
from ciml.recorder.ci_environment import run_of
from tests.integrations import github_samples, gitlab_samples, samples
from tests.integrations.reading import runs_of

BUILD = {"number": 13, "status": "FAILURE", "timestamp": 1795521660500}
#: System -> what its job's environment has, and the job's event.
JOBS: dict[str, tuple[dict[str, str], Delivery]] = {
    # As the printed workflow sets it: CIML_RUN_ID: ${{ job.check_run_id }}
    "github": (
        {"GITHUB_ACTIONS": "true", "GITHUB_RUN_ID": "81", "GITHUB_RUN_ATTEMPT": "2", "GITHUB_JOB": "unit",
         "CIML_RUN_ID": "4001"},
        github_samples.job(id=4001, run_id=81, run_attempt=2),
    ),
    "gitlab": (
        {"GITLAB_CI": "true", "CI_JOB_ID": "1977", "CI_JOB_NAME": "unit 1/2"},
        gitlab_samples.job(build_id=1977, build_name="unit 1/2"),
    ),
    "jenkins": (
        {"JENKINS_URL": "https://jenkins.example", "JOB_NAME": "team/app", "BUILD_NUMBER": "13",
         "BUILD_TAG": "jenkins-team-app-13"},
        samples.jenkins(),
    ),
    "jenkins, a matrix": (
        {"JENKINS_URL": "https://jenkins.example", "JOB_NAME": "team/app/os=linux,py=3", "BUILD_NUMBER": "13",
         "JOB_BASE_NAME": "os=linux,py=3", "JOB_URL": "https://jenkins.example/job/team/job/app/os=linux,py=3/",
         "BUILD_TAG": "jenkins-team-app-os=linux,py=3-13"},
        samples.cloudevent(
            "org.jenkinsci.job.finalized",
            {"url": "job/team/job/app/os=linux,py=3/", "build": BUILD},
        ),
    ),
    "zuul": ({"ZUUL_BUILD": "b1"}, samples.delivery(samples.zuul_message(samples.zuul_build()))),
}  # fmt: skip


@pytest.mark.parametrize("system", JOBS)
def test_one_job_is_one_run(system: str) -> None:
    environment, delivery = JOBS[system]
    name, known = system.partition(",")[0], run_of(environment)
    assert list(runs_of(name, delivery)) == [f"{known.native_id} {known.attempt}"]
    assert known.source == name


def test_a_configuration_of_a_matrix_has_one_job_and_one_project() -> None:
    environment, delivery = JOBS["jenkins, a matrix"]
    known, (run,) = run_of(environment), runs_of("jenkins", delivery).values()
    assert (known.job, known.facts["project"]) == (run.build_name, run.project) == ("app/os=linux,py=3", "team/app")


def test_a_github_job_alone_does_not_know_its_id() -> None:
    environment, delivery = JOBS["github"]
    known = run_of({**environment, "CIML_RUN_ID": "", "RUNNER_TRACKING_ID": "github_5b0e"})
    assert known.native_id == "81/unit/5b0e"
    assert list(runs_of("github", delivery)) == ["4001 2"]
