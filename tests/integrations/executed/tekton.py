"""Tekton: TaskRuns that a proxy's client certificate proves. A namespace says who may run something."""

from __future__ import annotations

from typing import Any

from tests.integrations.executed import Scenario
from tests.integrations.samples import cloudevent, task_run

LOG = {"ciml.dev/log-url": "s3://logs/{namespace}/{name}/{uid}.csv"}


def run(
    name: str,
    trusted: bool,
    executed: str,
    reviewed: str,
    /,
    *,
    auth: str = "mtls",
    source: str = "tekton",
    **metadata: Any,
) -> Scenario:
    task = task_run(metadata={"annotations": LOG, **metadata})
    sent = [cloudevent("dev.tekton.event.taskrun.successful.v1", task)]
    return Scenario(name, sent, executed, reviewed, trusted, "integrations/trust_mtls.toml", "tekton", auth, source)


def good(name: str, /, **metadata: Any) -> Scenario:
    return run(name, True, "merged code", "who may run in the namespace", **metadata)


def bad(name: str, /, executed: str = "anything", **metadata: Any) -> Scenario:
    return run(name, False, executed, "nobody", **metadata)


SCENARIOS = [
    good("a namespace of the policy", namespace="post-merge"),
    good("a namespace that a glob of the policy matches", namespace="release-1"),
    bad("another namespace", namespace="ci"),
    bad("a namespace that begins as one of the policy", namespace="post-merge-fork"),
    bad("a namespace that ends as one of the policy", namespace="eve-post-merge"),
    bad("a namespace in other letters", namespace="Post-Merge"),
    bad("a namespace with a slash", namespace="release-1/pr-5"),
    bad("no namespace", namespace=""),
    bad("a TaskRun that is called as a namespace of the policy", namespace="ci", name="post-merge"),
    bad(
        "labels that name a pipeline run of the policy",
        namespace="ci",
        labels={"tekton.dev/pipelineRun": "post-merge", "tekton.dev/pipelineTask": "gate"},
    ),
    bad("labels that name a project", namespace="ci", labels={"project": "post-merge", "review": "merged"}),
    bad(
        "annotations that name a review",
        namespace="ci",
        annotations={**LOG, "ciml.dev/review": "merged", "ciml.dev/project": "post-merge"},
    ),
    bad("a TaskRun that nobody proved", namespace="post-merge", auth=""),
    bad("a TaskRun that a token proves", namespace="post-merge", auth="token"),
    bad("a TaskRun under the name of another source", namespace="post-merge", source="jenkins"),
    bad("a namespace of a project in GitHub's form", namespace="post-merge/app"),
]
