"""Tekton: TaskRuns that a proxy's client certificate proves. A namespace says who may run something."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from ciml.integrations.adapter import Delivery
from tests.integrations.executed import Sent, Source
from tests.integrations.samples import cloudevent, task_run

LOG = {"ciml.dev/log-url": "s3://logs/{namespace}/{name}/{uid}.csv"}


def run(**metadata: Any) -> Delivery:
    task = task_run(metadata={"annotations": LOG, "namespace": "ci", **metadata})
    return cloudevent("dev.tekton.event.taskrun.successful.v1", task)


TEKTON = Source("tekton", "mtls", "integrations/trust_mtls.toml", "tekton")
good = TEKTON.good
bad = TEKTON.bad
SCENARIOS = {
    "a namespace of the policy": good(run(namespace="post-merge")),
    "a namespace that a glob of the policy matches": good(run(namespace="release-1")),
    "another namespace": bad(run()),
    "a namespace that begins as one of the policy": bad(run(namespace="post-merge-fork")),
    "a namespace that ends as one of the policy": bad(run(namespace="eve-post-merge")),
    "a namespace in other letters": bad(run(namespace="Post-Merge")),
    "a namespace with a slash": bad(run(namespace="release-1/pr-5")),
    "no namespace": bad(run(namespace="")),
    "a TaskRun that is called as a namespace of the policy": bad(run(name="post-merge")),
    "labels that name a pipeline run of the policy": bad(
        run(labels={"tekton.dev/pipelineRun": "post-merge", "tekton.dev/pipelineTask": "gate"})
    ),
    "labels that name a project": bad(run(labels={"project": "post-merge", "review": "merged"})),
    "annotations that name a review": bad(
        run(annotations={**LOG, "ciml.dev/review": "merged", "ciml.dev/project": "post-merge"})
    ),
    "a TaskRun that nobody proved": bad(Sent(run(namespace="post-merge"), auth="")),
    "a TaskRun that a token proves": bad(Sent(run(namespace="post-merge"), auth="token")),
    "a TaskRun under the name of another source": replace(TEKTON, name="jenkins").bad(run(namespace="post-merge")),
    "a namespace of a project in GitHub's form": bad(run(namespace="post-merge/app")),
}
