"""Jenkins: builds that a proxy's client certificate proves. A job and its branch say what was built."""

from __future__ import annotations

from typing import Any

from tests.integrations.executed import Scenario
from tests.integrations.samples import SHA, cloudevent

POLICY = """globs = 2

[[rule]]
name = "unproved"
trusted = false
source = ["jenkins"]
auth = [""]

[[rule]]
name = "own projects"
trusted = true
source = ["jenkins"]
auth = ["mtls"]
project = ["nightly", "release/*"]

[[rule]]
name = "main of all projects"
trusted = true
source = ["jenkins"]
auth = ["mtls"]
project = ["team/**"]
branch = ["main", "stable/*"]
"""


def build(
    name: str, trusted: bool, executed: str, *names: str, branch: str = "origin/main", auth: str = "mtls", **more: Any
) -> Scenario:
    """Return a scenario of one build; ``names`` are those of the folders and the job as its address encodes them."""
    data = {
        "url": "".join(f"job/{part}/" for part in names) + more.pop("configuration", ""),
        "build": {
            "number": 7,
            "status": "SUCCESS",
            "timestamp": 1795521660500,
            "fullUrl": "https://jenkins.example/job/x/7/",
            "scmState": {"url": "https://git.example/acme/app.git", "branch": branch, "commit": SHA},
            **more.pop("build", {}),
        },
    }
    source = more.pop("source", "jenkins")
    sent = [cloudevent("org.jenkinsci.job.finalized", data)]
    who = "who may change the job or push to the branch" if trusted else "nobody"
    return Scenario(name, sent, executed, who, trusted, POLICY, "jenkins", auth, source)


SCENARIOS = [
    build("a job of the policy", True, "what the job builds", "nightly"),
    build("a job in a folder of the policy", True, "what the job builds", "release", "1"),
    build("main of a job", True, "main", "team", "app"),
    build("main of a multibranch project", True, "main", "team", "app", "main", branch="main"),
    build(
        "a stable branch of a multibranch project", True, "stable/1", "team", "app", "stable%252F1", branch="stable/1"
    ),
    build("a configuration of a matrix on main", True, "main", "team", "app", configuration="os=linux/"),
    build("another branch", False, "fix", "team", "app", branch="origin/fix"),
    build("a branch called origin/main", False, "origin/main", "team", "app", branch="origin/origin/main"),
    build(
        "a branch called origin/main in a multibranch project",
        False,
        "origin/main",
        "team",
        "app",
        "origin%252Fmain",
        branch="origin/main",
    ),
    build("a pull request of a multibranch project", False, "PR-5", "team", "app", "PR-5", branch="PR-5"),
    build("a branch that is called as a pull request", False, "PR-5", "team", "app", "PR-5", branch="origin/PR-5"),
    build("a branch that a glob's star does not match", False, "stable/1/x", "team", "app", branch="origin/stable/1/x"),
    build("a branch in other letters", False, "Main", "team", "app", branch="origin/Main"),
    build("a tag called as a branch", False, "a tag", "team", "app", branch="refs/tags/main"),
    build("a full ref of a fork's remote", False, "fork/main", "team", "app", branch="fork/main"),
    build("a detached head", False, "unknown", "team", "app", branch="detached"),
    build("no branch", False, "unknown", "team", "app", branch=""),
    build("a job in a deeper folder", False, "anything", "release", "1", "pr"),
    build("a job whose name has a slash, in no folder of the policy", False, "anything", "release%252F1"),
    build("a job called as a folder of the policy", False, "anything", "eve", "release", "1"),
    build("a job whose name begins as one of the policy", False, "anything", "nightly-fork"),
    build("a job whose name has the folder's slash encoded", False, "main", "team%252Fapp"),
    build("a build that nobody proved", False, "anything", "nightly", auth=""),
    build("a build that a token proves", False, "anything", "nightly", auth="token"),
    build("a build under the name of another source", False, "anything", "nightly", source="tekton"),
    build(
        "parameters that claim a review",
        False,
        "anything",
        "eve",
        build={"parameters": {"review": "merged", "project": "nightly", "branch": "main"}},
    ),
]
