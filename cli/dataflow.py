"""Jobs on Dataflow: the options of commands, and the report of a job that was written or submitted."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ciml.cli.output import print_lines
from ciml.errors import CimlError
from ciml.extras import require
from ciml.options import Options, flag, option

if TYPE_CHECKING:
    from ciml.pipelines.dataflow.job import Launched
    from ciml.pipelines.dataflow.settings import DataflowSettings

#: The value of ``--runner`` for Dataflow.
DATAFLOW = "dataflow"
#: The limit of a job's graph by https://cloud.google.com/dataflow/quotas.
_GRAPH_BYTES = 10_000_000


class DataflowJob(Options):
    """Options of a job on Dataflow.

    Attributes:
      dataflow: TOML file of Dataflow: project, region, image and others. Keys: docs/dataflow.md.
      template: File of the Dataflow job description.
      job_name: Name of the Dataflow job.
      submit: Submit the Dataflow job.
    """

    dataflow: str | None = option(kind="file", envvar="CIML_DATAFLOW")
    template: str = option("", shown="none", metavar="FILE|gs://OBJECT")
    job_name: str = option("", shown="by command and data", metavar="NAME")
    submit: bool = flag()
    #: An option of streaming jobs alone.
    update: bool = False

    def check_unused(self, beam_options: Sequence[str] = ()) -> None:
        """Raise `CimlError` if an option of the job was given without ``--runner dataflow``.

        The file of settings may be given: it comes from a variable of the environment.

        Args:
          beam_options: the Beam options of a command that uses them only on Dataflow.
        """
        values = {"template": self.template, "job-name": self.job_name, "submit": self.submit, "update": self.update}
        for name, value in {**values, "beam-option": beam_options}.items():
            if value:
                raise CimlError(f"--{name}: only with --runner dataflow")

    def settings(self) -> DataflowSettings:
        """Check the options, and return the settings of the file."""
        from ciml.pipelines.dataflow.settings import DataflowSettings

        if self.dataflow is None:
            raise CimlError(
                "--runner dataflow: give --dataflow FILE with project, region, image and others; docs/dataflow.md"
            )
        if self.submit == bool(self.template):
            raise CimlError("--runner dataflow: give --template FILE or gs://OBJECT, or --submit")
        if self.update and not self.submit:
            raise CimlError("--update: replaces a running job, so it needs --submit")
        require("google.cloud.dataflow", "dataflow")
        self.name_or("ciml")  # which fails now for an invalid name, before any work
        return DataflowSettings.load(self.dataflow)

    def name_or(self, default: str) -> str:
        """Return the name of the job. Raises `CimlError` for one that Dataflow rejects."""
        from ciml.pipelines.dataflow.settings import check_job_name, job_name

        try:
            check_job_name(name := self.job_name or job_name(default))
        except ValueError as error:
            raise CimlError(f"--job-name: {error}") from None
        return name


def require_s3(*places: tuple[str | None, str]) -> None:
    """Raise `CimlError` unless all places are on S3.

    Args:
      places: (place, option) pairs; a place of None is left out.
    """
    from ciml.pipelines.dataflow.settings import check_on_s3

    for place, name in places:
        if place is not None:
            check_on_s3(place, name)


def print_launched(launched: Launched, settings: DataflowSettings, *, streaming: bool, then: str = "") -> None:
    """Print the job that was written or submitted, and the next commands.

    Args:
      launched: the job.
      settings: of the job.
      streaming: whether it is unbounded.
      then: the command to run when the job has ended.
    """
    print_lines(
        _submitted_lines(launched, settings, streaming) if launched.job_id else _template_lines(launched, settings)
    )
    click.echo(f"  pipeline  {launched.pipeline}, {launched.size / 1e6:.1f} MB")
    if launched.size > _GRAPH_BYTES:
        click.echo(
            f"warning: the pipeline has {launched.size / 1e6:.0f} MB, and Dataflow documents 10 MB as the limit of a "
            "job's graph; if it rejects the job, leave --runner out for the runs of the past",
            err=True,
        )
    if then:
        click.echo(f"  then      {then}")


def _submitted_lines(launched: Launched, settings: DataflowSettings, streaming: bool) -> Iterator[str]:
    page = f"https://console.cloud.google.com/dataflow/jobs/{settings.region}/{launched.job_id}"
    where = f"--project={settings.project} --region={settings.region}"
    end = "drain" if streaming else "cancel"
    yield f"{launched.name}: submitted as job {launched.job_id}"
    yield f"  watch     {page}?project={settings.project}"
    yield f"  stop      gcloud dataflow jobs {end} {launched.job_id} {where}"
    if streaming:
        yield "  replace   the same command with --update"


def _template_lines(launched: Launched, settings: DataflowSettings) -> Iterator[str]:
    yield f"{launched.name}: job description in {launched.template}; nothing runs"
    place = launched.template
    if not place.startswith("gs://"):
        place = f"{settings.staging}/templates/{Path(place).name}"
        yield f"  copy      gcloud storage cp {shlex.quote(launched.template)} {place}"
    yield f"  run       {_run_command(launched, settings, place)}"


def _run_command(launched: Launched, settings: DataflowSettings, place: str) -> str:
    """Return gcloud's command that starts a job from a template, with the settings of its workers."""
    flags = {
        "gcs-location": place,
        "project": settings.project,
        "region": settings.region,
        "staging-location": settings.temp_location,
        "worker-machine-type": settings.machine_type,
        "max-workers": settings.max_workers,
        "service-account-email": settings.service_account,
        "network": settings.network,
        "subnetwork": settings.subnetwork,
    }
    words = [f"--{key}={value}" for key, value in flags.items() if value not in ("", None)]
    words += ["--disable-public-ips"] * (not settings.public_addresses)
    return shlex.join(["gcloud", "dataflow", "jobs", "run", launched.name, *words])
