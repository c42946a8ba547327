"""Buildkite's webhooks: an adapter in a package of its own. ``pip install ./examples/buildkite_adapter`` registers it.

A job names its log by ``buildkite-agent meta-data set "ciml-log-$BUILDKITE_JOB_ID" s3://logs/$BUILDKITE_JOB_ID.csv``.
"""

from ciml.integrations import Adapter, Delivery, Ignored, Reading, Run
from ciml.integrations.fields import address_at, join_id, non_empty, required_text, text_at, time_at, value_at

PHASES = {"job.scheduled": "queued", "job.started": "started", "job.finished": "finished"}


def read(delivery: Delivery) -> Reading | Ignored:
    body = delivery.json()
    event, job = required_text(body, "event"), text_at(body, "job", "id")
    event_id = f"{event}/{job or text_at(body, 'build', 'id') or delivery.id}"
    if event not in PHASES:
        return Ignored(event_id, event, "only jobs are runs")
    if text_at(body, "job", "type") != "script":
        return Ignored(event_id, event, "a step without a command runs nothing")
    finished = event == "job.finished"
    fields = non_empty(
        id=job,
        job=text_at(body, "job", "step_key") or text_at(body, "job", "name"),
        result=text_at(body, "job", "state") if finished else "",
        start_time=time_at(body, "job", "started_at"),
        end_time=time_at(body, "job", "finished_at") if finished else None,
        project=text_at(body, "pipeline", "slug"),
        branch=text_at(body, "build", "branch"),
        change=text_at(body, "build", "pull_request", "id") or text_at(body, "build", "commit"),
        patchset=text_at(body, "build", "commit"),
        event=text_at(body, "build", "source"),
        url=address_at(body, "job", "web_url"),
        log_url=value_at(body, "build", "meta_data", f"ciml-log-{job}"),
        attempt_of=join_id(text_at(body, "build", "id"), text_at(body, "job", "step_key")),
    )
    return Reading(event_id, event, fields.get("end_time"), (Run(PHASES[event], fields),))


ADAPTER = Adapter("buildkite", ("x-buildkite-event",), read, signature="buildkite")
