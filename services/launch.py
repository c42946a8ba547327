"""Submits the streaming job of a service: to Flink through Beam's job server, or to Dataflow.

Dataflow restarts its workers itself: no supervisor of ciml watches its jobs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

from ciml.errors import CimlError, EngineError
from ciml.services.service import Service, TopicService

if TYPE_CHECKING:
    from ciml.pipelines.dataflow.job import Launched
    from ciml.pipelines.dataflow.settings import DataflowSettings
    from ciml.pipelines.flink.submit import FlinkJob  # which loads all of Beam
    from ciml.services.options import ServiceOptions


def submit_to_flink(
    service: Service,
    endpoint: str,
    name: str,
    *,
    workers: str | None = None,
    savepoint: str | None = None,
    changes: Mapping[str, Any] | None = None,
    extra: tuple[str, ...] = (),
    on_name: Callable[[str], None] | None = None,
) -> FlinkJob:
    """Submit a service's job, which starts from its manifest.

    Args:
      service: the service.
      endpoint: ``host:port`` of Beam's job server.
      name: prefix of the job's name.
      workers, savepoint, changes, extra: see `ciml.pipelines.flink.submit.flink_options`.
      on_name: called with the job's name before it is submitted.

    Raises:
      EngineError: if Flink, the broker or a store does not answer.
      IntegrityError: if continuing would lose or mix data.
    """
    from ciml.pipelines.flink.submit import FlinkJob, flink_options

    options = flink_options(
        endpoint, name, workers=workers, savepoint=savepoint, changes={**service.flink, **(changes or {})}, extra=extra
    )
    if on_name is not None:
        on_name(str(options.get_all_options()["job_name"]))
    return FlinkJob(partial(service.build, work=service.plan(bounded=False)), options)


def check_job(job: FlinkJob) -> None:
    """Raise the error that ended a job, or `EngineError` if it ended without one."""
    job.check()
    if job.over:
        raise EngineError(f"the Flink job ended by itself: {job.state}")


def check_runs_on_dataflow(options: ServiceOptions) -> None:
    """Raise `CimlError` for a kind of service that does not run on Dataflow."""
    if not options.submits:
        raise CimlError(
            "--runner dataflow: this service keeps its state in Flink or in its process, and no manifest covers it; "
            "leave --runner out"
        )


def launch_on_dataflow(
    service: TopicService[Any],
    settings: DataflowSettings,
    name: str,
    *,
    template: str = "",
    update: bool = False,
    extra: Sequence[str] = (),
) -> Launched:
    """Write or submit the streaming job of a service, which starts at the uncovered offsets of its manifest.

    Args:
      service: one whose manifest covers a topic; its data is on S3.
      settings: of all jobs.
      name: of the job.
      template, update, extra: see `ciml.pipelines.dataflow.job.launch`.

    Raises:
      CimlError: the job would refer to this machine or hold a secret.
      EngineError: the broker, the store or Google Cloud does not answer.
      IntegrityError: if continuing would lose or mix data.
    """
    from ciml.pipelines.dataflow.job import launch
    from ciml.pipelines.dataflow.settings import check_fetch, kafka_of_workers, secrets_here

    processor = service.processor
    config = processor.config
    fetch = getattr(config, "fetch", None)
    if fetch is not None:
        check_fetch(fetch)
    kafka = kafka_of_workers(config.kafka, settings)
    try:
        service.open()
        work = service.plan(bounded=False)
        if work is None:
            raise CimlError(f"topic {service.topic} has no partition to read")
        # Planned with this process's connection; the job has the workers'.
        service.processor = processor.with_config(replace(config, kafka=kafka, maintains=True))
        return launch(
            partial(service.build, work=work),
            settings,
            name,
            streaming=True,
            template=template,
            update=update,
            extra=extra,
            hidden=secrets_here(config.kafka, fetch),
        )
    finally:
        service.close()
