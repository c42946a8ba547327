"""Builds and updates of data sets as jobs on Dataflow."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING

import click

from ciml.cli.batch_options import DataflowJob, collecting_rarely, print_launched

if TYPE_CHECKING:
    from ciml.data_root import DataRoot
    from ciml.datasets.definition import DatasetDefinition
    from ciml.pipelines.dataflow.settings import DataflowSettings
    from ciml.pipelines.datasets.build import PlannedUpdate


def launch_build(
    source: DataRoot,
    target: DataRoot,
    definition: DatasetDefinition,
    settings: DataflowSettings,
    job: DataflowJob,
    beam_options: tuple[str, ...],
) -> None:
    """Create the data set, and write or submit the job that builds it."""
    from ciml.pipelines.datasets.build import plan_build

    with collecting_rarely():
        planned = plan_build(source, target, definition)
    _launch(planned, definition.name, target, settings, job, beam_options)


def launch_update(
    data: DataRoot,
    name: str,
    settings: DataflowSettings,
    job: DataflowJob,
    beam_options: tuple[str, ...],
    *,
    seal: bool,
) -> None:
    """Write or submit the job that seals the spans which have enough runs."""
    from ciml.pipelines.datasets.build import plan_update

    with collecting_rarely():
        planned = plan_update(data.dataset(name), seal=seal)
    _launch(planned, name, data, settings, job, beam_options)


def _launch(
    planned: PlannedUpdate,
    dataset: str,
    target: DataRoot,
    settings: DataflowSettings,
    job: DataflowJob,
    beam_options: tuple[str, ...],
) -> None:
    name = job.name_or(f"ciml-dataset-{dataset}")
    if not planned.steps:
        click.echo(f"{dataset}: nothing to build; {planned.waiting:,} runs wait for the next span")
        return
    from ciml.pipelines.dataflow.job import launch
    from ciml.pipelines.dataflow.settings import secrets_here

    launched = launch(
        planned.build, settings, name, streaming=False, template=job.template, extra=beam_options, hidden=secrets_here()
    )
    spans = sum(len(step.spans) for step in planned.steps)
    click.echo(f"{dataset}: {planned.runs:,} runs for {spans:,} {'span' if spans == 1 else 'spans'}")
    show = shlex.join(["ciml", "dataset", "show", dataset, "--data-path", target.url])
    print_launched(launched, settings, streaming=False, then=show)
