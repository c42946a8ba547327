"""What all adapters promise alike: an event without runs is ignored by a documented rule, a damaged one is rejected."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

import pytest

from ciml.errors import RejectedInput
from ciml.integrations import cloudevents, jenkins, tekton, zuul
from ciml.integrations.adapter import NOTHING, Delivery
from ciml.integrations.gerrit import adapter as gerrit
from ciml.integrations.github import adapter as github
from ciml.integrations.gitlab import adapter as gitlab
from tests.integrations import github_samples as hub
from tests.integrations import gitlab_samples as lab
from tests.integrations import samples
from tests.integrations.deliveries import event_of
from tests.integrations.reading import runs_of, settled_of
from tests.integrations.samples import (
    RUN,
    account,
    cdevent,
    cloudevent,
    delivery,
    ref_update,
    task_run,
    vote,
    zuul_build,
    zuul_message,
)
from tests.integrations.test_documents import MODULES, rules

Rows = Iterable[tuple[Delivery, str]]
CLEO = account("cleo")
APPROVAL = [vote("Code-Review", "2", "0")]
CHANGE = samples.gerrit("")["change"]
NOON, NOON_US = "2026-11-24T12:00:00Z", 1795521600_000_000
FINISHED = "dev.ciml.run.finished.v1"
JSON = {"content-type": "application/cloudevents+json"}


def of_gerrit(kind: str = "change-merged", **fields: Any) -> Delivery:
    return delivery(samples.gerrit(kind, **fields))


def updated(*ref: str) -> Delivery:
    return of_gerrit("ref-updated", refUpdate=ref_update(*ref))


def voted(approvals: Any, by: Any = CLEO, **fields: Any) -> Delivery:
    return of_gerrit("comment-added", author=by, approvals=approvals, **fields)


def of_zuul(*builds: dict[str, Any], **fields: Any) -> Delivery:
    return delivery({**zuul_message(*(builds or (zuul_build(),))), **fields})


def of_task(data: Any, word: str = "successful") -> Delivery:
    return cloudevent(f"dev.tekton.event.taskrun.{word}.v1", data)


def of_jenkins(url: Any = "job/app/", kind: str = "job.completed", **build: Any) -> Delivery:
    return cloudevent(f"org.jenkinsci.{kind}", {"url": url, "build": {"number": 1, "status": "SUCCESS", **build}})


def cde(kind: str, version: str = ".0.3.0", **parts: Any) -> Delivery:
    return delivery(cdevent(f"dev.cdevents.{kind}{version}", parts.pop("content", {}), **parts))


def finished(**changes: Any) -> Delivery:
    """Return a finished run of a CDEvent; the changes are those of its content."""
    return cde("taskrun.finished", content={"taskName": "build", "outcome": "failure"} | changes)


IGNORED: dict[str, Rows] = {
    "github": [
        (hub.check_run(app={"slug": "github-actions", "name": "GitHub Actions"}), github.ACTIONS_CHECK),
        (hub.check_run(app={}, details_url="https://github.com/octo/widget/actions/runs/81"), github.ACTIONS_CHECK),
        (hub.check_run(completed_at="2026-11-24T12:00:00Z"), github.INSTANT_CHECK),
        (hub.check_run("rerequested"), github.CHECK_REQUEST),
        (hub.pr("labeled"), github.SAME_PULL_REQUEST),
        (hub.pr("edited"), github.SAME_PULL_REQUEST),
        (hub.merged(head=hub.FORK), github.OF_FORK),
        (hub.merged(head=None), github.OF_FORK),
        (hub.delivery("pull_request", json.loads(hub.merged().body) | {"repository": hub.FORK}), github.OF_FORK),
        (hub.reviewed(head=hub.FORK), github.OF_FORK),
        (hub.reviewed(by="approver[bot]", kind="Bot"), github.BOT),
        (hub.reviewed(by=""), github.BOT),
        (hub.reviewed("commented"), github.COMMENT),
        (hub.reviewed(association="NONE"), github.OUTSIDER),
        (hub.reviewed(association="CONTRIBUTOR"), github.OUTSIDER),
        (hub.queue(reason="dequeued"), github.OPEN_GROUP),
        (hub.queue(action="checks_requested"), github.OPEN_GROUP),
        (hub.delivery("push", {}), github.PUSH),
        (hub.push(sha="0" * 40), github.PUSH),
        (hub.push("refs/tags/main"), github.PUSH),
        *((hub.delivery(kind, {}), rule) for kind, rule in github.RULES.items()),
        (hub.delivery("star", {}), github.OTHER),
        (hub.delivery("workflow_run", {"workflow_run": {"id": 1}}), NOTHING),
    ],
    "gitlab": [
        *((lab.delivery({"object_kind": kind}), rule) for kind, rule in gitlab.RULES.items()),
        (lab.delivery({"object_kind": "note"}), gitlab.OTHER),
        (lab.delivery({"event_name": "project_create"}), gitlab.OTHER),
        (lab.delivery({"object_kind": "pipeline", "object_attributes": {"id": 1}}), NOTHING),
    ],
    "gerrit": [
        (updated("refs/heads/main", "0" * 40, "0" * 40), NOTHING),
        (voted(APPROVAL, by={}), gerrit.UNKNOWN_VOTER),
        (voted(APPROVAL, by=None), gerrit.UNKNOWN_VOTER),
        (voted(APPROVAL, by=account("eve")), gerrit.OWN_VOTE),
        (voted([vote("Code-Review", "1", "0")]), gerrit.NO_VOTE),
        (voted(APPROVAL, change={**CHANGE, "status": "MERGED"}), gerrit.CLOSED),
        *((updated(f"refs/{name}"), gerrit.NO_FACT) for name in ("changes/07/7/2", "changes/07/7/meta", "tags/v1")),
        *((updated(name), gerrit.NO_FACT) for name in ("main", "")),
        *((of_gerrit(kind), gerrit.NO_FACT) for kind in ("change-abandoned", "project-created", "dropped-output")),
        (of_gerrit("patchset-created", change={**CHANGE, "owner": None}, patchSet={"number": 2}), gerrit.NO_OWNER),
    ],
    "zuul": [
        *((delivery(samples.zuul(name)), zuul.NOT_STARTED) for name in ("check-start", "gate-start")),
        *((delivery(zuul_message(action=action)), zuul.NO_BUILD) for action in ("enqueue", "no-jobs", "dequeue")),
    ],
    "tekton": [
        (cloudevent("dev.tekton.event.pipelinerun.successful.v1", {}), tekton.PIPELINE_RUN),
        (cloudevent("dev.tekton.event.customrun.failed.v1", {}), tekton.CUSTOM_RUN),
        (cloudevent("dev.tekton.event.run.started.v1", {}), tekton.CUSTOM_RUN),
        (cloudevent("dev.tekton.event.triggers.done.v1", {}), tekton.TRIGGER),
    ],
    "jenkins": [
        *(
            (cloudevent(f"org.jenkinsci.job.{word}", {"url": "job/app/"}), jenkins.NO_BUILD)
            for word in ("updated", "created")
        ),
        (cloudevent("org.jenkinsci.queue.left", {}), jenkins.QUEUE),
        (cloudevent("org.jenkinsci.node.offline", {}), jenkins.NODE),
    ],
    "cdevents": [
        (cde("change.merged"), cloudevents.NO_CHAIN),
        (cde("change.abandoned", context={"chainId": "c1"}), cloudevents.ABANDONED),
        *((cde(kind), cloudevents.NO_RUN) for kind in ("build.finished", "service.deployed", "incident.detected")),
        (cde("testcaserun.finished"), cloudevents.TEST_CASE),
        (cde("testoutput.published"), cloudevents.OUTPUT),
        (delivery(cdevent("dev.cdeventsx.tool-thing.created.0.1.0", {})), cloudevents.CUSTOM),
    ],
}
#: The id of the run, if it is known, and the reason with the beginning of its detail.
REJECTED: dict[str, Rows] = {
    "github": [
        (hub.job(conclusion="finished"), "4001 bad_field: result: 'FINISHED' is an unknown word; set outcome too"),
        (hub.job(conclusion=None), "4001 missing_field: result"),
        (hub.job(completed_at="2026-11-24T11:00:00Z"), "4001 bad_time: end_time: before start_time"),
        (
            hub.job(started_at="1015-01-11T19:01:11Z"),
            "bad_time: workflow_job.started_at: '1015-01-11T19:01:11Z' is not",
        ),
        (hub.job(status="done"), "bad_field: workflow_job.status: unknown 'done'; known are requested, queued, "),
        (hub.job(run_id="81/../.."), "bad_field: workflow_job.run_id: want a whole number from 1, not a text"),
        (hub.job(run_id=None), "missing_field: workflow_job.run_id"),
        (hub.job(labels=[{}]), "bad_field: workflow_job.labels[0]: want a text, not an object"),
        (hub.job(id={}), "bad_run_id: id: want a text, not an object"),
        (hub.job(run_attempt=0), "bad_run_id: attempt: want a whole number from 1"),
        (hub.delivery("workflow_job", {}), "missing_field: workflow_job"),
        (Delivery(b"{}", {}), "missing_field: header x-github-event"),
        (hub.delivery("Workflow Job", {}), "unknown_type: header x-github-event: 'Workflow Job'"),
        (
            Delivery(b"payload=%7B%7D", {github.EVENT: "workflow_job"}),
            "broken_json: a form; set the content type of the ",
        ),
    ],
    "gitlab": [
        (lab.job(build_status="finished"), "bad_field: build_status: unknown 'finished'; known are created, waiting_"),
        (lab.job(build_status=None), "missing_field: build_status"),
        (lab.job(build_id="9001"), "bad_field: build_id: want a whole number from 1, not a text"),
        (lab.job(project_id="1/../2"), "bad_field: project_id: want a whole number from 1, not a text"),
        (lab.job(build_name=""), "missing_field: build_name"),
        (lab.job(build_finished_at="yesterday"), "bad_time: build_finished_at: 'yesterday' is not ISO 8601"),
        (
            lab.job(build_started_at=None, build_finished_at=None, build_created_at=None),
            "9001 missing_field: start_time",
        ),
        (lab.job(runner=[]), "bad_field: runner: want an object, not a list"),
        (lab.job(runner={"tags": "linux"}), "bad_field: runner.tags: want a list of at most 100 texts"),
        (lab.delivery({}), "missing_field: object_kind"),
        (lab.delivery({"object_kind": "Push Hook"}), "unknown_type: object_kind: 'Push Hook'"),
        (lab.delivery({"object_kind": []}), "bad_field: object_kind: want a text, not a list"),
    ],
    "gerrit": [
        (of_gerrit(type=None), "missing_field: type"),
        (of_gerrit(change=None), "missing_field: change.number"),
        (of_gerrit(change=[]), "bad_field: change: want an object, not a list"),
        (of_gerrit(change={"number": 7}, project={}), "missing_field: change.project"),
        (of_gerrit(change={**CHANGE, "number": "7/2"}), "bad_field: change.number: want a number from 1, not '7/2'"),
        (of_gerrit(change={**CHANGE, "number": -7}), "bad_field: change.number: want a number from 1, not '-7'"),
        (of_gerrit(change={"number": 7, "project": "p"}), "missing_field: change.branch"),
        (of_gerrit(patchSet=None), "missing_field: patchSet.number"),
        (of_gerrit(patchSet={"number": 2.5}), "bad_field: patchSet.number: want a text, not a number"),
        (of_gerrit(eventCreatedOn="yesterday"), "bad_time: eventCreatedOn: 'yesterday' is not ISO 8601"),
        (voted({}), "bad_field: approvals: want a list, not an object"),
        (voted([7]), "bad_field: approvals[0]: want an object, not a whole number"),
        (voted([{}] * 101), "too_many_runs: approvals: 101 entries, at most 100"),
        (voted([{"type": []}]), "bad_field: type: want a text, not a list"),
        (voted([vote("Code-Review", "two")]), "bad_field: approvals.value: want a vote, not 'two'"),
    ],
    "zuul": [
        (of_zuul(action=None), "missing_field: action"),
        (of_zuul(buildset=None), "missing_field: buildset"),
        (of_zuul(buildset="s1"), "bad_field: buildset: want an object, not a text"),
        (of_zuul(buildset={"builds": [zuul_build()]}), "missing_field: buildset.uuid"),
        (of_zuul(buildset={"uuid": "s1", "builds": {}}), "bad_field: buildset.builds: want a list, not an object"),
        (of_zuul(buildset={"uuid": "s1", "builds": [[]]}), "bad_field: buildset.builds[0]: want an object, not a list"),
        (of_zuul(zuul_build(uuid=["b1"])), "bad_run_id: id: want a text, not a list"),
        (of_zuul(*[{}] * 1001), "too_many_runs: buildset.builds: 1001 entries, at most 1000"),
        (of_zuul(changes=7), "bad_field: changes: want a list, not a whole number"),
        (of_zuul(timestamp="now"), "bad_time: timestamp: 'now' is not ISO 8601"),
    ],
    "tekton": [
        (
            of_task(task_run("Whatever", "False"), "failed"),
            "0c2e bad_field: result: 'WHATEVER' is an unknown word; set",
        ),
        (of_task(task_run("Failed", "False")), "bad_field: taskRun.status: its condition Succeeded is not True"),
        (
            of_task(task_run(status={"conditions": []})),
            "bad_field: taskRun.status: its condition Succeeded is not True",
        ),
        (of_task(task_run(status={"conditions": {}})), "bad_field: conditions: want a list, not an object"),
        (of_task([]), "bad_field: data: want an object, not a list"),
        (of_task({}), "missing_field: taskRun"),
        (of_task({"taskRun": []}), "bad_field: taskRun: want an object, not a list"),
        (of_task(task_run(metadata={"uid": ""})), "missing_field: id"),
        (of_task(task_run(metadata={"labels": []})), "bad_field: metadata.labels: want an object, not a list"),
        (
            of_task(task_run(metadata={"annotations": {tekton.LOG: [1]}})),
            f"bad_field: {tekton.LOG}: want a text, not a",
        ),
        (delivery(task_run()["taskRun"]), "not_an_event: specversion: want 1.0"),  # a stored object
        (of_task(task_run(), "skipped"), "unknown_type: type: 'dev.tekton.event.taskrun.skipped.v1'"),
        (of_task(task_run(), "failed.v12"), "unknown_type: type: 'dev.tekton.event.taskrun.failed.v12.v1'"),
        (cloudevent("dev.tekton.event.pod.started.v1", {}), "unknown_type: type: 'dev.tekton.event.pod.started.v1'"),
        (cloudevent("dev.cdevents.x", {}), "unknown_type: type: 'dev.cdevents.x'"),
    ],
    "jenkins": [
        (of_jenkins(timestamp=1.5), "bad_field: build.timestamp: want milliseconds, not a number"),
        (of_jenkins(timestamp=1 << 60), "bad_field: build.timestamp: want milliseconds, not a whole "),
        (of_jenkins(duration=-1), "bad_field: build.duration: want milliseconds, not a whole number"),
        (of_jenkins(timestamp=5, duration=6), "bad_field: build.duration: exceeds build.timestamp"),
        (of_jenkins(number=None), "missing_field: build.number"),
        (of_jenkins(number="b-7"), "bad_field: build.number: want a number from 1, not 'b-7'"),
        (of_jenkins(number=0), "bad_field: build.number: want a number from 1, not '0'"),
        (of_jenkins(scmState=[]), "bad_field: build.scmState: want an object, not a list"),
        (of_jenkins(fullUrl=1.5), "bad_field: build.fullUrl: want a text, not a number"),
        (of_jenkins(""), "missing_field: url"),
        (of_jenkins(["job/a/"]), "bad_field: url: want a text, not a list"),
        (
            of_jenkins("job/a/b/"),
            "bad_field: url: want job/NAME/, with job/FOLDER/ before it for each ",
        ),
        (of_jenkins(kind="job.paused"), "unknown_type: type: 'org.jenkinsci.job.paused'"),
        (of_jenkins(kind="pipeline.started"), "unknown_type: type: 'org.jenkinsci.pipeline.started'"),
        (cloudevent("dev.cdevents.job.started", {}), "unknown_type: type: 'dev.cdevents.job.started'"),
    ],
    "cdevents": [
        (finished(outcome=None), "ci/tekton/build-7 missing_field: result"),
        (finished(outcome="neither"), "ci/tekton/build-7 bad_field: result: 'NEITHER' is an unknown word; set "),
        (finished(taskName=None), "ci/tekton/build-7 missing_field: job"),
        (finished(taskName={}), "bad_field: taskName: want a text, not an object"),
        (cde("taskrun.finished", context={"timestamp": "noon"}), "bad_time: context.timestamp: 'noon' is not ISO 8601"),
        (cde("taskrun.finished", subject={"id": ""}), "missing_field: subject.id"),
        (cde("taskrun.finished", subject={"content": "x"}), "bad_field: subject.content: want an object, not a text"),
        (cde("taskrun.finished", customData={"ciml": "x"}), "bad_field: ciml: want an object, not a text"),
        (delivery({"context": None, "subject": {}}), "missing_field: context.id"),
        (delivery({"context": [], "subject": {}}), "bad_field: context: want an object, not a list"),
        (delivery({"subject": {}}), "not_an_event: specversion: want 1.0"),
        (cde("taskrun.resumed"), "unknown_type: context.type: 'dev.cdevents.taskrun.resumed.0.3.0'"),
        (cde("change.split"), "unknown_type: context.type: 'dev.cdevents.change.split.0.3.0'"),
        (cde("taskrun.finished", version=""), "unknown_type: context.type: 'dev.cdevents.taskrun.finished'"),
        (delivery(cdevent("org.example.taskrun.finished.0.3.0", {})), "unknown_type: context.type: 'org.example.task"),
    ],
    "cloudevents": [
        (cloudevent("dev.ciml.run.lost.v1", RUN), "unknown_type: type: 'dev.ciml.run.lost.v1'"),
        (cloudevent(FINISHED, {"runs": []}), "bad_field: runs: want a list of runs, not an empty list"),
        (cloudevent(FINISHED, {"runs": "r1"}), "bad_field: runs: want a list of runs, not a text"),
        (cloudevent(FINISHED, {"runs": [[]]}), "bad_field: runs[0]: want an object, not a list"),
        (cloudevent(FINISHED, {"runs": [{}] * 1001}), "too_many_runs: runs: 1001 runs, at most 1000"),
        (cloudevent(FINISHED, []), "bad_field: data: want an object, not a list"),
        (cloudevent(FINISHED, [], "structured"), "bad_field: data: want an object, not a list"),
        (cloudevent(FINISHED, {}), "missing_field: id"),
        (delivery(RUN), "not_an_event: specversion: want 1.0"),
        (
            delivery([], {"content-type": "application/cloudevents-batch+json"}),
            "not_an_event: content-type: 'applicatio",
        ),
        (
            delivery(RUN, {"content-type": "text/plain", "ce-id": "e1"}),
            "not_an_event: content-type: 'text/plain' is not",
        ),
        (delivery(RUN, {"ce-specversion": "0.3", "ce-id": "e1"}), "not_an_event: ce_specversion: want 1.0"),
        (delivery(RUN, {"ce-specversion": "1.0", "ce-type": FINISHED}), "missing_field: id"),
        (delivery(RUN, {"ce-specversion": "1.0", "ce-id": "e1"}), "missing_field: type"),
        (
            delivery({"specversion": "1.0", "id": "e1", "type": FINISHED}, JSON),
            "bad_field: data: want an object, not null",
        ),
        (delivery({"specversion": "1.0", "id": {}, "type": FINISHED, "data": RUN}, JSON), "bad_field: id: want a text"),
    ],
}

#: Phase and start, microseconds, of a run that has not ended.
UNFINISHED: dict[str, Iterable[tuple[Delivery, str, int | None]]] = {
    "github": [
        *((hub.unended_job(status, status), "queued", None) for status in ("queued", "waiting")),
        (hub.unended_job("in_progress", "in_progress"), "started", NOON_US),
    ],
    "gitlab": [
        *((lab.unended_job(status), "queued", None) for status in "created preparing pending manual scheduled".split()),
        *((lab.unended_job(f"waiting_for_{what}"), "queued", None) for what in ("resource", "callback")),
        *((lab.unended_job(status, NOON), "started", NOON_US) for status in ("running", "canceling")),
    ],
    "zuul": [
        (of_zuul(zuul_build(result=None, start_time=None, end_time=None), action="dequeue"), "queued", None),
        (of_zuul(zuul_build(result=None, start_time=NOON_US / 1e6, end_time=None)), "started", NOON_US),
    ],
    "tekton": [
        (of_task(task_run("Pending", "Unknown", status={"startTime": None}), "queued"), "queued", None),
        *(
            (of_task(task_run("Running", "Unknown"), word), "started", NOON_US)
            for word in ("started", "running", "unknown")
        ),
    ],
    "jenkins": [
        (samples.jenkins("started", status=None, duration=0, timestamp=NOON_US // 1000), "started", NOON_US),
    ],
    "cdevents": [
        (cde("pipelinerun.queued", content={"pipelineName": "nightly"}), "queued", None),
        (
            cde("pipelinerun.started", ".0.3.0-draft", content={"pipelineName": "nightly"}),
            "started",
            NOON_US + 60_000_000,
        ),
    ],
    "cloudevents": [
        (cloudevent("dev.ciml.run.queued.v1", {"id": "r1", "job": "unit"}), "queued", None),
        (cloudevent("dev.ciml.run.started.v1", {"id": "r1", "job": "unit", "start_time": NOON}), "started", NOON_US),
    ],
}
#: The system's own word for a result, and the outcome.
OUTCOMES: dict[str, Iterable[tuple[Delivery, str, str]]] = {
    "github": [
        (hub.job(conclusion=word), word, outcome)
        for outcome, words in {
            "success": "success",
            "failure": "failure",
            "timeout": "timed_out",
            "cancellation": "cancelled stale",
            "skip": "skipped neutral action_required",
        }.items()
        for word in words.split()
    ],
    "gitlab": [
        (lab.job(build_status="failed", build_failure_reason=reason), "failed", outcome)
        for outcome, reasons in {
            "failure": "script_failure unknown_failure a_new_reason",
            "timeout": "job_execution_timeout",
            "error": "runner_system_failure stuck_or_timeout_failure",
        }.items()
        for reason in reasons.split()
    ],
    "tekton": [
        (of_task(task_run("TaskRunResultsVerified")), "TaskRunResultsVerified", "success"),  # whatever the reason
        *(
            (of_task(task_run(reason, "False"), "failed"), reason, outcome)
            for outcome, reasons in {
                "failure": "Failed FailureIgnored TaskRunResultLargerThanAllowedLimit",
                "timeout": "TaskRunTimeout",
                "cancellation": "TaskRunCancelled",
                "error": "TaskRunImagePullFailed PodEvicted ExceededNodeResources",
            }.items()
            for reason in reasons.split()
        ),
    ],
    "jenkins": [
        *((samples.jenkins(kind), "SUCCESS", "success") for kind in ("completed", "finalized", "finalzed", "failed")),
        *((samples.jenkins(status=status), status, "failure") for status in ("FAILURE", "UNSTABLE")),
        (samples.jenkins(status="ABORTED"), "ABORTED", "cancellation"),
        (samples.jenkins(status="NOT_BUILT"), "NOT_BUILT", "skip"),
    ],
    "cdevents": [
        (cde("testsuiterun.finished", content={"testSuite": {"id": "9"}, "outcome": word}), word, outcome)
        for outcome, words in {
            "success": "success pass",
            "failure": "failure fail",
            "cancellation": "cancel",
            "error": "error",
        }.items()
        for word in words.split()
    ],
}


def flat(table: Mapping[str, Iterable[tuple[Any, ...]]]) -> list[Any]:
    """Return the rows of a table, each with its adapter."""
    return [pytest.param(name, *row, id=f"{name}: {row[1]}") for name, rows in table.items() for row in rows]


@pytest.mark.parametrize(("adapter", "given", "rule"), flat(IGNORED))
def test_an_event_that_says_nothing_of_runs_is_ignored_by_its_rule(adapter: str, given: Delivery, rule: str) -> None:
    event = event_of(adapter, given)
    assert (event.ignored, event.run_facts, event.rejections, event.updates) == (rule, (), (), ())
    assert event.id == {"github": given.id, "tekton": "e1", "jenkins": "e1", "cdevents": "d1"}.get(adapter, event.id)
    assert settled_of(adapter, given) == [("ignored", "no_run", rule)]


@pytest.mark.parametrize("adapter", IGNORED)
def test_each_rule_has_such_an_event(adapter: str) -> None:
    assert {rule for _, rule in IGNORED[adapter]} == rules(MODULES[adapter])


@pytest.mark.parametrize(("adapter", "given", "said"), flat(REJECTED))
def test_a_damaged_event_is_rejected_with_the_field_and_the_reason(adapter: str, given: Delivery, said: str) -> None:
    try:
        event = event_of(adapter, given)
    except RejectedInput as rejected:
        found = f"{rejected.reason}: {rejected.detail}"
    else:
        ((facts, fault),) = event.rejections
        found = f"{facts.build_uuid} {fault.reason}: {fault.detail}"
        assert event.run_facts == ()
    assert found.startswith(said)


@pytest.mark.parametrize(("adapter", "given", "phase", "start_us"), flat(UNFINISHED))
def test_a_run_that_has_not_ended_is_not_finished(
    adapter: str, given: Delivery, phase: str, start_us: int | None
) -> None:
    (run,) = runs_of(adapter, given).values()
    assert (run.phase, run.start_us, run.end_us, run.outcome) == (phase, start_us, None, None)
    assert settled_of(adapter, given) == [("ignored", "not_finished", "")]


@pytest.mark.parametrize(("adapter", "given", "word", "outcome"), flat(OUTCOMES))
def test_the_outcome_of_a_word_of_the_system(adapter: str, given: Delivery, word: str, outcome: str) -> None:
    (run,) = runs_of(adapter, given).values()
    assert (run.phase, run.result, run.outcome) == ("finished", word, outcome)
