"""Services as streaming jobs on Dataflow, which restarts their workers itself: no supervisor of ciml watches them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

from ciml.errors import CimlError
from ciml.pipelines.dataflow.settings import DataflowSettings, check_fetch, kafka_of_workers, secrets_here
from ciml.services.options import ServiceOptions
from ciml.services.service import TopicService

if TYPE_CHECKING:
    from ciml.pipelines.dataflow.job import Launched


def check_kind(options: ServiceOptions) -> None:
    """Raise `CimlError` for a kind of service that does not run on Dataflow."""
    if not options.submits:
        raise CimlError(
            "--runner dataflow: this service keeps its state in Flink or in its process, and no manifest covers it; "
            "leave --runner out"
        )


def launch_service(
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
    processor = service.processor
    config = processor.config
    fetch = getattr(config, "fetch", None)
    if fetch is not None:
        check_fetch(fetch)
    kafka = kafka_of_workers(config.kafka, settings)
    from ciml.pipelines.dataflow.job import launch

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
        service.processor = processor
        service.close()
