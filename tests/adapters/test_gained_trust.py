"""What nobody reviewed gains no trust by other deliveries of the same commit: attacks, and the sample policies."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from adapters.adapter import Delivery
from adapters.registry import delivered, find_adapter, read_event
from ciml.events.records import Message, RunFacts
from ciml.raw.known_subjects import Subjects
from tests.adapters import github_samples, gitlab_samples
from tests.adapters.github_samples import FORK, REPOSITORY, SHA, pull, pull_request, review, workflow_run
from tests.adapters.gitlab_samples import merge_request, pipeline
from transforms.ingest.trust import TrustPolicy, evaluate

SAMPLES = Path(__file__).parents[2] / "transforms" / "ingest"


def rule(system: str, *given: Delivery) -> str:
    """Return the rule that decides about the run of the first delivery, once all are joined."""
    subjects, runs = Subjects(), list[RunFacts]()
    for each in given:
        auth = {"github": "hmac-sha256", "gitlab": "token"}[system]
        value, headers = delivered(find_adapter(system), system, each.body, each.headers, auth, each.id)
        event = read_event(Message(0, value, tuple(headers)))
        runs += event.run_facts
        for update in event.updates:
            subjects.say(update, event.key)
    return evaluate(TrustPolicy.load(SAMPLES / f"trust_{system}.toml"), subjects.join(runs[0])).rule


def at(given: Delivery, when: str) -> Delivery:
    """Return a review at a time of its pull request."""
    body = json.loads(given.body)
    body["pull_request"]["updated_at"] = when
    return github_samples.delivery("pull_request_review", body)


OF_BRANCH = [github_samples.job(head_branch="fix"), workflow_run(head_branch="fix")]
OF_PULL = [
    github_samples.job(head_branch="fix"),
    workflow_run(event="pull_request", head_branch="fix", pull_requests=[pull()]),
]


@pytest.mark.parametrize(
    ("given", "decides"),
    [
        ([github_samples.job(), workflow_run()], "main branches"),
        ([*OF_PULL, review()], "reviewed"),
        ([*OF_PULL, pull_request(head={"ref": "fix", "sha": SHA, "repo": REPOSITORY})], "reviewed"),
        ([github_samples.job(), workflow_run(head=FORK)], "forks"),
        # A push to an unprotected branch; then a pull request to main, of a fork that has the same commit.
        ([*OF_BRANCH, pull_request()], "no rule"),
        ([*OF_BRANCH, review(head=FORK, state="changes_requested")], "no rule"),
        ([*OF_BRANCH, review("dismissed", head=FORK, state="dismissed")], "no rule"),
        # A pull request to main that nobody has read; the same commit was merged into a branch of its author.
        ([*OF_PULL, pull_request(base={"ref": "mine", "repo": REPOSITORY})], "no rule"),
        # An approval that was withdrawn.
        (
            [
                *OF_PULL,
                at(review(), "2026-11-24T12:30:00Z"),
                at(review("dismissed", state="dismissed"), "2026-11-24T12:31:00Z"),
            ],
            "no rule",
        ),
    ],
)
def test_github(given: list[Delivery], decides: str) -> None:
    assert rule("github", *given) == decides


INSIDE = {"iid": 6, "source_project_id": 44, "target_project_id": 44, "target_branch": "main"}
OF_REQUEST = [
    gitlab_samples.job(ref="refs/merge-requests/6/head"),
    pipeline(INSIDE, source="merge_request_event", ref="fix"),
]


@pytest.mark.parametrize(
    ("given", "decides"),
    [
        ([gitlab_samples.job(), pipeline()], "main branches"),
        ([*OF_REQUEST, merge_request(action="approved", target_branch="main")], "reviewed"),
        ([*OF_REQUEST, merge_request(target_branch="main")], "reviewed"),
        # A tag, or a branch, called as the ref of a merge request to main.
        (
            [
                gitlab_samples.job(ref="refs/merge-requests/6/head", tag=True),
                pipeline(ref="refs/merge-requests/6/head", tag=True),
                merge_request(target_branch="main", action="open"),
            ],
            "no rule",
        ),
        (
            [
                gitlab_samples.job(ref="refs/merge-requests/6/head"),
                pipeline(ref="refs/merge-requests/6/head"),
                merge_request(target_branch="main", action="open"),
            ],
            "no rule",
        ),
        ([gitlab_samples.job(tag=True), pipeline(tag=True)], "no rule"),
        ([gitlab_samples.job(), pipeline(tag=None)], "no rule"),
        ([*OF_REQUEST, merge_request(action="approved", author_id=3)], "no rule"),
        ([*OF_REQUEST, merge_request(iid=7, target_branch="mine")], "no rule"),
        # A push to an unprotected branch; then a merge request of it to main.
        ([gitlab_samples.job(ref="fix"), pipeline(ref="fix"), merge_request(target_branch="main")], "no rule"),
    ],
)
def test_gitlab(given: list[Delivery], decides: str) -> None:
    assert rule("gitlab", *given) == decides
