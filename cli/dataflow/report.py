"""The report of a job on Dataflow: what was made, and the next commands."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from ciml.pipelines.dataflow.job import Launched
    from ciml.pipelines.dataflow.settings import DataflowSettings


#: Of https://cloud.google.com/dataflow/quotas.
_GRAPH_BYTES = 10_000_000


def print_launched(launched: Launched, settings: DataflowSettings, *, streaming: bool, then: str = "") -> None:
    """Print what was made, and the next commands.

    Args:
      launched: the job.
      settings: of the job.
      streaming: whether it is unbounded.
      then: what to do when it has ended.
    """
    where = f"--project={settings.project} --region={settings.region}"
    if launched.job_id:
        click.echo(f"{launched.name}: submitted as job {launched.job_id}")
        click.echo(
            f"  watch     https://console.cloud.google.com/dataflow/jobs/{settings.region}/{launched.job_id}"
            f"?project={settings.project}"
        )
        end = "drain" if streaming else "cancel"
        click.echo(f"  stop      gcloud dataflow jobs {end} {launched.job_id} {where}")
        if streaming:
            click.echo("  replace   the same command with --update")
    else:
        click.echo(f"{launched.name}: job description in {launched.template}; nothing runs")
        place = launched.template
        if not place.startswith("gs://"):
            place = f"{settings.staging}/templates/{Path(place).name}"
            click.echo(f"  copy      gcloud storage cp {shlex.quote(launched.template)} {place}")
        click.echo(f"  run       {_run_command(launched, settings, place)}")
    click.echo(f"  pipeline  {launched.pipeline}, {launched.size / 1e6:.1f} MB")
    if launched.size > _GRAPH_BYTES:
        click.echo(
            f"warning: the pipeline has {launched.size / 1e6:.0f} MB, and Dataflow documents 10 MB as the limit of a "
            "job's graph; if it rejects the job, leave --runner out for the runs of the past",
            err=True,
        )
    if then:
        click.echo(f"  then      {then}")


def _run_command(launched: Launched, settings: DataflowSettings, place: str) -> str:
    """Return gcloud's command that starts a job from a template, with the settings of its workers."""
    flags = {
        "gcs-location": place, "project": settings.project, "region": settings.region,
        "staging-location": settings.temp_location, "worker-machine-type": settings.machine_type,
        "max-workers": settings.max_workers, "service-account-email": settings.service_account,
        "network": settings.network, "subnetwork": settings.subnetwork,
    }  # fmt: skip
    words = [f"--{key}={value}" for key, value in flags.items() if value not in ("", None)]
    words += ["--disable-public-ips"] * (not settings.public_addresses)
    return shlex.join(["gcloud", "dataflow", "jobs", "run", launched.name, *words])
