"""Buildkite's webhooks: an adapter in a package of its own. ``pip install ./examples/buildkite_adapter`` registers it.

A job names its log by ``buildkite-agent meta-data set "ciml-log-$BUILDKITE_JOB_ID" s3://logs/$BUILDKITE_JOB_ID.csv``.
"""

from ciml.integrations import Adapter, Delivery, Ignored, Reading, Run
from ciml.integrations.fields import address, filled, joined, moment, needed, value, word

PHASES = {"job.scheduled": "queued", "job.started": "started", "job.finished": "finished"}


def read(delivery: Delivery) -> Reading | Ignored:
    body = delivery.json()
    event, job = needed(body, "event"), word(body, "job", "id")
    event_id = f"{event}/{job or word(body, 'build', 'id') or delivery.id}"
    if event not in PHASES:
        return Ignored(event_id, event, "only jobs are runs")
    if word(body, "job", "type") != "script":
        return Ignored(event_id, event, "a step without a command runs nothing")
    finished = event == "job.finished"
    fields = filled(
        id=job,
        job=word(body, "job", "step_key") or word(body, "job", "name"),
        result=word(body, "job", "state") if finished else "",
        start_time=moment(body, "job", "started_at"),
        end_time=moment(body, "job", "finished_at") if finished else None,
        project=word(body, "pipeline", "slug"),
        branch=word(body, "build", "branch"),
        change=word(body, "build", "pull_request", "id") or word(body, "build", "commit"),
        patchset=word(body, "build", "commit"),
        event=word(body, "build", "source"),
        url=address(body, "job", "web_url"),
        log_url=value(body, "build", "meta_data", f"ciml-log-{job}"),
        attempt_of=joined(word(body, "build", "id"), word(body, "job", "step_key")),
    )
    return Reading(event_id, event, fields.get("end_time"), (Run(PHASES[event], fields),))


ADAPTER = Adapter("buildkite", ("x-buildkite-event",), read, signature="buildkite")
