"""Options of jobs on Dataflow: ``--runner dataflow`` of services and batch commands."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ciml.errors import CimlError
from cli.options import Option, stacked

if TYPE_CHECKING:
    from pipelines.dataflow.job import Launched
    from pipelines.dataflow.settings import DataflowSettings

DATAFLOW = "dataflow"


@dataclass(frozen=True)
class DataflowJob:
    """The values of `dataflow_options`.

    Attributes:
      settings_file: path of the ``--dataflow`` file; None without one.
      template: file or ``gs://`` object for the job description; "" for none.
      job_name: name of the job; "" for the command's own.
      submit: whether the job is submitted.
      update: whether it replaces the running job of its name.
    """

    settings_file: str | None = None
    template: str = ""
    job_name: str = ""
    submit: bool = False
    update: bool = False

    def check_unused(self) -> None:
        """Raise `CimlError` if one of the options was given without ``--runner dataflow``."""
        given = {
            "--dataflow": self.settings_file, "--template": self.template, "--job-name": self.job_name,
            "--submit": self.submit, "--update": self.update,
        }  # fmt: skip
        for option, value in given.items():
            if value:
                raise CimlError(f"{option}: only with --runner dataflow")

    def settings(self) -> DataflowSettings:
        """Check the options, and return the settings of the file."""
        from pipelines.dataflow.settings import DataflowSettings, require_dataflow

        if self.settings_file is None:
            raise CimlError(
                "--runner dataflow: give --dataflow FILE with project, region, image and others; docs/dataflow.md"
            )
        if self.submit == bool(self.template):
            raise CimlError("--runner dataflow: give --template FILE or gs://OBJECT, or --submit")
        if self.update and not self.submit:
            raise CimlError("--update: replaces a running job, so it needs --submit")
        require_dataflow()
        return DataflowSettings.load(self.settings_file)

    def name_or(self, default: str) -> str:
        """Return the name of the job. Raises `CimlError` for one that Dataflow rejects."""
        from pipelines.dataflow.settings import check_job_name, job_name

        try:
            check_job_name(name := self.job_name or job_name(default))
        except ValueError as error:
            raise CimlError(f"--job-name: {error}") from None
        return name


def dataflow_options(updates: bool = False) -> Option:
    """Return the options of a job on Dataflow, which the command gets as one argument ``job``.

    Args:
      updates: whether the job is unbounded, so that ``--update`` can replace it.
    """
    update = click.option("--update", is_flag=True, help="Replace the running Dataflow job of that name.")
    options = stacked(
        click.option(
            "--dataflow",
            "settings_file",
            metavar="FILE",
            envvar="CIML_DATAFLOW",
            show_envvar=True,
            type=click.Path(exists=True, dir_okay=False),
            help="TOML file of Dataflow: project, region, image and others. Keys: docs/dataflow.md.",
        ),
        click.option("--template", default="", show_default="none", metavar="FILE|gs://OBJECT",
                     help="File of the Dataflow job description."),
        click.option("--job-name", default="", show_default="by command and data", metavar="NAME",
                     help="Name of the Dataflow job."),
        click.option("--submit", is_flag=True, help="Submit the Dataflow job."),
        *([update] if updates else []),
    )  # fmt: skip

    def apply(command: Callable[..., Any]) -> Any:
        @wraps(command)
        def with_job(**values: Any) -> Any:
            job = DataflowJob(
                **{each.name: values.pop(each.name) for each in fields(DataflowJob) if each.name in values}
            )
            return command(job=job, **values)

        return options(with_job)

    return apply


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
    click.echo(f"  pipeline  {launched.pipeline}")
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


def as_s3(*places: tuple[str | None, str]) -> None:
    """Raise `CimlError` unless all places, (place, option) pairs, are on S3; None is left out."""
    from pipelines.dataflow.checks import check_on_s3

    for place, option in places:
        if place is not None:
            check_on_s3(place, option)
