"""Sample deliveries of each adapter: messages of own servers (zuul/), and hand-made ones.

``SAMPLES`` has them by the adapter's name, for properties that hold for all adapters.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ciml.integrations.adapter import Delivery

_ZUUL = Path(__file__).parent / "zuul"
SHA = "9f2c1b7e4a6d8035c1e2f3a4b5c6d7e8f9a0b1c2"
PARENT = "5b1d0c9e8f7a6b5c4d3e2f1a0b9c8d7e6f5a4b3c"


def delivery(body: Any, headers: dict[str, str] | None = None, delivery_id: str = "") -> Delivery:
    """Return a delivery with a JSON body."""
    return Delivery(json.dumps(body).encode(), headers or {}, delivery_id)


def zuul(name: str) -> dict[str, Any]:
    """Return a message that a Zuul 14.3 of ours sent: check-failure, check-start, gate-start, gate-success, …"""
    found: dict[str, Any] = json.loads((_ZUUL / f"{name}.json").read_bytes())
    return found


def zuul_build(**fields: Any) -> dict[str, Any]:
    """Return a build as Zuul 4 reports it: without a change of its own."""
    return {
        "job_name": "unit",
        "voting": True,
        "uuid": "b1",
        "execute_time": 1795521590.5,
        "start_time": 1795521600.25,
        "end_time": 1795521660.75,
        "log_url": "https://logs.example/b1",
        "web_url": "https://zuul.example/build/b1",
        "result": "SUCCESS",
        "artifacts": [],
        **fields,
    }


def zuul_message(*builds: dict[str, Any], **fields: Any) -> dict[str, Any]:
    """Return a message as Zuul 4 sends it, about change 903450,3 of openstack/nova."""
    buildset = {"uuid": "s1", "result": "SUCCESS", "builds": list(builds), **fields.pop("buildset", {})}
    return {
        "action": "success",
        "tenant": "main",
        "pipeline": "check",
        "project": "openstack/nova",
        "branch": "master",
        "change": "903450",
        "patchset": "3",
        "commit_id": SHA,
        "owner": "ada",
        "trigger_time": "1795521580.5",
        "enqueue_time": "1795521581.5",
        "buildset": buildset,
        **fields,
    }


def gerrit(kind: str, **fields: Any) -> dict[str, Any]:
    """Return an event of Gerrit about change 7,2 of demo/app: owner ada, uploader bob, author eve."""
    return {
        "type": kind,
        "change": {
            "project": "demo/app",
            "branch": "main",
            "number": 7,
            "status": "NEW",
            "owner": account("ada"),
            "commitMessage": "A change\n\nChange-Id: I7\n",
        },
        "patchSet": {
            "number": 2,
            "revision": SHA,
            "parents": [PARENT],
            "uploader": account("bob"),
            "author": account("eve"),
            "createdOn": 1795521500,
            "kind": "REWORK",
        },
        "project": {"name": "demo/app"},
        "eventCreatedOn": 1795521600,
        **fields,
    }


def ref_update(name: str, new: str = SHA, old: str = PARENT) -> dict[str, str]:
    """Return an update of a ref of demo/app in Gerrit."""
    return {"oldRev": old, "newRev": new, "refName": name, "project": "demo/app"}


def account(name: str) -> dict[str, str]:
    """Return an account of Gerrit."""
    return {"name": name.title(), "email": f"{name}@example.org", "username": name}


def vote(label: str, value: str, before: str | None = None) -> dict[str, str]:
    """Return a vote of a comment; with the vote before, it is a change of the vote."""
    return {"type": label, "description": label, "value": value, **({} if before is None else {"oldValue": before})}


def cloudevent(kind: str, data: Any, mode: str = "binary") -> Delivery:
    """Return a CloudEvent as an HTTP request carries it: binary or structured."""
    attributes = {"specversion": "1.0", "id": "e1", "type": kind, "source": "/ci", "time": "2026-11-24T12:01:00Z"}
    if mode == "structured":
        body = {**attributes, "datacontenttype": "application/json", "data": data}
        return delivery(body, {"content-type": "application/cloudevents+json; charset=utf-8"})
    return delivery(data, {"content-type": "application/json", **{f"ce-{name}": at for name, at in attributes.items()}})


def task_run(reason: str = "Succeeded", succeeded: str = "True", **parts: Any) -> dict[str, Any]:
    """Return the data of Tekton's event of a TaskRun; the parts metadata and status are merged."""
    metadata = {
        "name": "nightly-x7-build",
        "namespace": "ci",
        "uid": "0c2e",
        "creationTimestamp": "2026-11-24T11:59:58Z",
        "labels": {
            "tekton.dev/pipeline": "nightly",
            "tekton.dev/pipelineRun": "nightly-x7",
            "tekton.dev/pipelineTask": "build",
        },
        "annotations": {"ciml.dev/log-url": "s3://logs/{namespace}/{name}/{uid}-{attempt}.csv"},
    }
    state = {
        "startTime": "2026-11-24T12:00:00Z",
        "completionTime": "2026-11-24T12:01:00Z",
        "podName": "nightly-x7-build-pod",
        "conditions": [{"type": "Succeeded", "status": succeeded, "reason": reason, "message": "…"}],
    }
    return {
        "taskRun": {
            "metadata": metadata | parts.get("metadata", {}),
            "spec": {"taskRef": {"name": "golang-build"}},
            "status": state | parts.get("status", {}),
        }
    }


def attempt(reason: str, second: int) -> dict[str, Any]:
    """Return the status of an earlier attempt of a TaskRun, which took the second after 11:50:`second`."""
    return {
        "startTime": f"2026-11-24T11:50:{second:02}Z",
        "completionTime": f"2026-11-24T11:50:{second + 1:02}Z",
        "conditions": [{"type": "Succeeded", "status": "False", "reason": reason}],
    }


def cdevent(kind: str, content: dict[str, Any], version: str = "0.5.1", **parts: Any) -> dict[str, Any]:
    """Return a CDEvent of a version; the parts context, subject and customData are merged."""
    new = not version.startswith(("0.3", "0.4"))
    context = {
        "specversion" if new else "version": version,
        "id": "d1",
        "source": "/ci/tekton",
        "type": kind,
        "timestamp": "2026-11-24T12:01:00Z",
    }
    subject = {"id": "build-7", "content": content} | ({} if new else {"type": kind.split(".")[2]})
    event = {"context": context | parts.get("context", {}), "subject": subject | parts.get("subject", {})}
    return event | {name: part for name, part in parts.items() if name not in event}


def jenkins(kind: str = "finalized", **build: Any) -> Delivery:
    """Return an event of Jenkins' CloudEvents plugin about build 13 of the job app in the folder team."""
    state = {
        "fullUrl": "https://jenkins.example/job/team/job/app/13/",
        "number": 13,
        "queueId": 25,
        "timestamp": 1795521660500,
        "duration": 60250,
        "phase": kind.upper(),
        "status": "SUCCESS",
        "url": "job/team/job/app/13/",
        "displayName": None,
        "parameters": {"SECRET": "x"},
        "scmState": {"url": "https://git.example/acme/app.git", "branch": "origin/main", "commit": SHA},
    }
    data = {"userId": "SYSTEM", "name": "app", "displayName": "App", "url": "job/team/job/app/", "build": state | build}
    return cloudevent(f"org.jenkinsci.job.{kind}", data)


RUN = {
    "id": "r1",
    "job": "unit",
    "result": "FAILURE",
    "start_time": 1795521600,
    "log_url": "https://logs.example/r1.csv",
    "pipeline": "gate",
    "labels": {"voting": True},
}

SAMPLES: dict[str, list[Delivery]] = {
    "zuul": [
        *(delivery(zuul(name), {"topic": "zuul/demo"}) for name in ("gate-start", "gate-success")),
        delivery(
            zuul_message(
                zuul_build(result="it works"),
                zuul_build(uuid="b2", job_uuid="j2", result="NODE_FAILURE", start_time=None, end_time=None),
                changes=[{"project": "demo"}, {"project": "demo"}],
                buildset={"retry_builds": [zuul_build(uuid="b3", job_uuid="j2", result="RETRY")]},
            )
        ),
        delivery(zuul_message(action="merge-conflict")),
    ],
    "gerrit": [
        delivery(gerrit("patchset-created")),
        delivery(gerrit("comment-added", author=account("cleo"), approvals=[vote("Code-Review", "2", "0")])),
        delivery(gerrit("vote-deleted", reviewer=account("cleo"), approvals=[vote("Workflow", "0", "1")])),
        delivery(gerrit("change-merged", submitter=account("cleo"), newRev=SHA)),
        delivery(gerrit("ref-updated", refUpdate=ref_update("refs/heads/main"))),
        delivery(gerrit("topic-changed")),
    ],
    "tekton": [
        cloudevent("dev.tekton.event.taskrun.started.v1", task_run("Started", "Unknown")),
        cloudevent("dev.tekton.event.taskrun.successful.v1", task_run(), "structured"),
        cloudevent(
            "dev.tekton.event.taskrun.failed.v1",
            task_run("Failed", "False", status={"retriesStatus": [attempt("Failed", 1)]}),
        ),
        cloudevent("dev.tekton.event.pipelinerun.failed.v1", {"pipelineRun": {"metadata": {"name": "nightly-x7"}}}),
    ],
    "cdevents": [
        cloudevent(
            "dev.cdevents.taskrun.finished.0.3.0",
            cdevent(
                "dev.cdevents.taskrun.finished.0.3.0",
                {"taskName": "build", "outcome": "success", "uri": "https://ci.example/7"},
                context={"chainId": "c1"},
                customData={"ciml": {"log_url": "https://logs.example/7.csv", "labels": {"node": "n1"}}},
            ),
        ),
        delivery(
            cdevent(
                "dev.cdevents.pipelinerun.started.0.1.1",
                {"pipelineName": "nightly", "url": "https://ci.example/1"},
                "0.3.0",
            )
        ),
        delivery(
            cdevent(
                "dev.cdevents.testsuiterun.finished.0.2.0",
                {"testSuite": {"id": "s", "name": "unit"}, "outcome": "fail"},
                "0.4.1",
            )
        ),
        delivery(
            cdevent("dev.cdevents.change.merged.0.3.0", {"repository": {"id": "demo/app"}}, context={"chainId": "c1"})
        ),
        delivery(cdevent("dev.cdevents.artifact.published.0.2.0", {})),
    ],
    "jenkins": [jenkins("started", status=None, duration=0), jenkins(), jenkins("failed", status="FAILURE")],
    "cloudevents": [
        cloudevent("dev.ciml.run.finished.v1", RUN),
        cloudevent("dev.ciml.run.started.v1", {"runs": [RUN, {**RUN, "id": "r2"}]}, "structured"),
    ],
}
