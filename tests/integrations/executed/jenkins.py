"""Jenkins: builds that a proxy's client certificate proves. A job and its branch say what was built."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from ciml.integrations.adapter import Delivery
from tests.integrations.executed import Sent, Source
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


def build(*names: str, branch: str = "origin/main", configuration: str = "", **more: Any) -> Delivery:
    """Return a finished build; ``names`` are those of the folders and the job as its address encodes them."""
    state = {
        "number": 7,
        "status": "SUCCESS",
        "timestamp": 1795521660500,
        "fullUrl": "https://jenkins.example/job/x/7/",
        "scmState": {"url": "https://git.example/acme/app.git", "branch": branch, "commit": SHA},
    }
    data = {"url": "".join(f"job/{part}/" for part in names) + configuration, "build": state | more}
    return cloudevent("org.jenkinsci.job.finalized", data)


JENKINS = Source("jenkins", "mtls", POLICY, "jenkins")
good = JENKINS.good
bad = JENKINS.bad
SCENARIOS = {
    "a job of the policy": good(build("nightly")),
    "a job in a folder of the policy": good(build("release", "1")),
    "main of a job": good(build("team", "app")),
    "main of a multibranch project": good(build("team", "app", "main", branch="main")),
    "a stable branch of a multibranch project": good(build("team", "app", "stable%252F1", branch="stable/1")),
    "a configuration of a matrix on main": good(build("team", "app", configuration="os=linux/")),
    "another branch": bad(build("team", "app", branch="origin/fix")),
    "a branch called origin/main": bad(build("team", "app", branch="origin/origin/main")),
    "a branch called origin/main in a multibranch project": bad(
        build("team", "app", "origin%252Fmain", branch="origin/main")
    ),
    "a pull request of a multibranch project": bad(build("team", "app", "PR-5", branch="PR-5")),
    "a branch that is called as a pull request": bad(build("team", "app", "PR-5", branch="origin/PR-5")),
    "a branch that a glob's star does not match": bad(build("team", "app", branch="origin/stable/1/x")),
    "a branch in other letters": bad(build("team", "app", branch="origin/Main")),
    "a tag called as a branch": bad(build("team", "app", branch="refs/tags/main")),
    "a full ref of a fork's remote": bad(build("team", "app", branch="fork/main")),
    "a detached head": bad(build("team", "app", branch="detached")),
    "no branch": bad(build("team", "app", branch="")),
    "a job in a deeper folder": bad(build("release", "1", "pr")),
    "a job whose name has a slash, in no folder of the policy": bad(build("release%252F1")),
    "a job called as a folder of the policy": bad(build("eve", "release", "1")),
    "a job whose name begins as one of the policy": bad(build("nightly-fork")),
    "a job whose name has the folder's slash encoded": bad(build("team%252Fapp")),
    "a build that nobody proved": bad(Sent(build("nightly"), auth="")),
    "a build that a token proves": bad(Sent(build("nightly"), auth="token")),
    "a build under the name of another source": replace(JENKINS, name="tekton").bad(build("nightly")),
    "parameters that claim a review": bad(
        build("eve", parameters={"review": "merged", "project": "nightly", "branch": "main"})
    ),
}
