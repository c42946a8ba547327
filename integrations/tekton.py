"""Tekton: CloudEvents of TaskRuns. A PipelineRun is the sum of its TaskRuns and has no machine of its own.

A TaskRun says where its telemetry is by the annotation `LOG`, and where its output is by `OUTPUT`. Tekton passes the
annotations of a PipelineRun on to its TaskRuns, so one address serves all of them: ``{namespace}``, ``{name}``,
``{uid}`` and ``{attempt}`` are replaced.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from ciml.errors import RejectedInput
from ciml.events.fields import raw_text_field
from ciml.events.records import Phase
from ciml.events.redaction import shown
from ciml.integrations.adapter import Adapter, Delivery, Ignored, Reading, Run
from ciml.integrations.cloudevents import HEADERS, open_delivery
from ciml.integrations.fields import (
    join_id,
    non_empty,
    object_at,
    objects_at,
    phases_by_status,
    required_object,
    required_text,
    text_at,
    time_at,
    value_at,
)
from ciml.limits import MAX_LABEL_NAME_CHARACTERS, MAX_LABELS, MAX_URL_CHARACTERS

PIPELINE_RUN = "a PipelineRun is the sum of its TaskRuns"
CUSTOM_RUN = "a CustomRun has no pod"
TRIGGER = "an event of Tekton Triggers reports no run"

#: The annotation that holds the address of the telemetry.
LOG = "ciml.dev/log-url"
#: The annotation that may hold the address of the output.
OUTPUT = "ciml.dev/output-url"

_TYPE = re.compile(r"dev\.tekton\.event\.([a-z]+)\.([a-z]+)\.v1")
_PART = re.compile(r"\{(?:namespace|name|uid|attempt)\}")
_IGNORED = {"pipelinerun": PIPELINE_RUN, "customrun": CUSTOM_RUN, "run": CUSTOM_RUN, "triggers": TRIGGER}
_PHASES = phases_by_status(queued="queued", started="started running unknown", finished="successful failed")
#: The status of the condition Succeeded in events that end a TaskRun.
_STATUS = {"successful": "True", "failed": "False"}
_MOST = 100  # attempts, conditions


def read(delivery: Delivery) -> Reading | Ignored:
    """Read a TaskRun's last attempt, and the ones before where the address of its telemetry names the attempt."""
    attributes, data = open_delivery(delivery)
    event = required_text(attributes, "id")
    kind = required_text(attributes, "type")
    match = _TYPE.fullmatch(kind)
    if match and match[1] in _IGNORED:
        return Ignored(event, kind, _IGNORED[match[1]])
    if not match or match[1] != "taskrun" or match[2] not in _PHASES:
        raise RejectedInput("unknown_type", f"type: {shown(kind)}")
    task_run = required_object(data, "taskRun")
    phase = _PHASES[match[2]]
    status = object_at(task_run, "status")
    if phase == "finished" and _condition(status).get("status") != _STATUS[match[2]]:
        raise RejectedInput("bad_field", f"taskRun.status: its condition Succeeded is not {_STATUS[match[2]]}")
    annotations = object_at(task_run, "metadata", "annotations")
    log = raw_text_field(annotations, LOG, limit=MAX_URL_CHARACTERS)
    output = annotations.get(OUTPUT)
    output = output if type(output) is str else ""
    earlier = objects_at(task_run, "status", "retriesStatus", most=_MOST)
    runs = [Run(phase, _attempt(task_run, status, phase, len(earlier) + 1, log, output))]
    if "{attempt}" in log:
        own_output = output if "{attempt}" in output else ""
        runs += [
            Run("finished", _attempt(task_run, attempt_status, "finished", n, log, own_output))
            for n, attempt_status in enumerate(earlier, 1)
        ]
    return Reading(event, kind, time_at(attributes, "time"), tuple(runs))


def _attempt(
    task_run: Mapping[str, Any], status: Mapping[str, Any], phase: Phase, attempt: int, log: str, output: str
) -> dict[str, Any]:
    namespace = text_at(task_run, "metadata", "namespace")
    name = text_at(task_run, "metadata", "name")
    labels = object_at(task_run, "metadata", "labels")
    task = text_at(labels, "tekton.dev/pipelineTask") or text_at(task_run, "spec", "taskRef", "name") or name
    pipeline_run = text_at(labels, "tekton.dev/pipelineRun") or name
    uid = text_at(task_run, "metadata", "uid")
    parts = {"{namespace}": namespace, "{name}": name, "{uid}": uid, "{attempt}": str(attempt)}
    start = time_at(status, "startTime")
    end = time_at(status, "completionTime")
    condition = _condition(status)
    finished = phase == "finished"
    if finished and start is None and end is None:  # rejected before it started
        end = time_at(task_run, "metadata", "creationTimestamp")
    return non_empty(
        id=uid,
        attempt=attempt,
        job=task,
        result=text_at(condition, "reason") if finished else "",
        outcome="success" if finished and condition.get("status") == "True" else "",
        start_time=start,
        end_time=end if finished else None,
        project=namespace,
        log_url=_filled_in(log, parts),
        output_url=_output_address(output, parts),
        attempt_of=join_id(namespace, pipeline_run, task),
        labels=_labels(labels),
    )


def _filled_in(log: str, parts: Mapping[str, str]) -> str:
    """Return the address with its parts, each replaced once: a name may hold ``{uid}`` again."""
    size = len(log) + sum(log.count(part) * (len(replacement) - len(part)) for part, replacement in parts.items())
    if size > MAX_URL_CHARACTERS:
        raise RejectedInput("bad_field", f"{LOG}: {size} characters, at most {MAX_URL_CHARACTERS}")
    return _PART.sub(lambda part: parts[part[0]], log)


def _output_address(output: str, parts: Mapping[str, str]) -> str:
    """Return the address of the output with its parts; "" for one that is too long, which is not a fault of its run."""
    try:
        return _filled_in(output, parts)
    except RejectedInput:
        return ""


def _condition(status: Mapping[str, Any]) -> Mapping[str, Any]:
    conditions = objects_at(status, "conditions", most=_MOST)
    return next((condition for condition in conditions if value_at(condition, "type") == "Succeeded"), {})


def _labels(labels: Mapping[str, Any]) -> dict[str, Any]:
    """Return at most `MAX_LABELS` labels, all with names short enough. Kubernetes permits longer names."""
    short = sorted(name for name in labels if name and len(name) <= MAX_LABEL_NAME_CHARACTERS)
    return {name: labels[name] for name in short[:MAX_LABELS]}


ADAPTER = Adapter("tekton", HEADERS, read)
