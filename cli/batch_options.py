"""Options of batch commands and of jobs on Dataflow, and the report of a submitted job."""

from __future__ import annotations

import gc
import os
import shlex
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ciml.cli.options import Option, gathered, running_engines, s3_place, stacked
from ciml.errors import CimlError

if TYPE_CHECKING:
    from ciml.pipelines.dataflow.job import Launched
    from ciml.pipelines.dataflow.settings import DataflowSettings

DATAFLOW = "dataflow"
#: Of https://cloud.google.com/dataflow/quotas.
_GRAPH_BYTES = 10_000_000


def processors() -> int:
    """Return the number of processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextmanager
def collecting_rarely() -> Iterator[None]:
    """Raise the garbage collector's thresholds while modules are imported and large manifests are read.

    Both make some hundred thousand objects that stay and form no cycles. At the usual thresholds the collector scans
    them repeatedly, for a quarter of the time. Not for long-running processes, where cycles would keep large objects.
    """
    before = gc.get_threshold()
    gc.set_threshold(1_000_000, 50, 100)
    try:
        yield
    finally:
        gc.freeze()  # else the first collection after this scans all of it
        gc.set_threshold(*before)


def _runner(ctx: click.Context, param: click.Parameter, value: str | None) -> tuple[str | None, str]:
    if value is None or ctx.resilient_parsing:
        return None, ""
    name, _, endpoint = value.partition(":")
    if name not in ("fnapi", "flink", DATAFLOW) or (name != "flink" and endpoint):
        raise click.BadParameter(
            f"unknown runner {value!r}; choose from fnapi, flink, flink:HOST:PORT, dataflow", ctx, param
        )
    if name == "flink" and not endpoint:
        flink = running_engines(ctx).get("flink")
        if flink is None or flink.light:
            raise CimlError(
                "no Flink runs here: start it (ciml up flink) or name a job server (--runner flink:HOST:PORT)"
            )
        endpoint = flink.address
    return name, endpoint


#: ``--runner``, as ``runner``: (None, "fnapi", "flink" or "dataflow"; the job server's ``host:port``) of a batch
#: pipeline. Beside `ciml.cli.batch_options.dataflow_options`.
runner_option = click.option(
    "--runner",
    metavar="fnapi|flink|dataflow",
    callback=_runner,
    help="Beam runner; flink:HOST:PORT names a job server.  [default: none, without Beam]",
)


def logs_option(required: bool = False) -> Option:
    """``--logs``, as ``logs``: the text, for `ciml.pipelines.backfill.plan.logs_root`."""
    text = "Folder or s3:// prefix of the listing's log paths."
    return click.option("--logs", required=required, metavar="ROOT", callback=s3_place, help=text)


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

    def check_unused(self, beam_options: Sequence[str] = ()) -> None:
        """Raise `CimlError` if an option of the job was given without ``--runner dataflow``.

        ``beam_options`` are those of a command that has no other use for them.

        The file of settings may be given: it comes from a variable of the environment.
        """
        values = {
            "--template": self.template,
            "--job-name": self.job_name,
            "--submit": self.submit,
            "--update": self.update,
            "--beam-option": beam_options,
        }
        for option, value in values.items():
            if value:
                raise CimlError(f"{option}: only with --runner dataflow")

    def settings(self) -> DataflowSettings:
        """Check the options, and return the settings of the file."""
        from ciml.pipelines.dataflow.settings import DataflowSettings, require_dataflow

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
        from ciml.pipelines.dataflow.settings import check_job_name, job_name

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
        click.option(
            "--template",
            default="",
            show_default="none",
            metavar="FILE|gs://OBJECT",
            help="File of the Dataflow job description.",
        ),
        click.option(
            "--job-name",
            default="",
            show_default="by command and data",
            metavar="NAME",
            help="Name of the Dataflow job.",
        ),
        click.option("--submit", is_flag=True, help="Submit the Dataflow job."),
        *([update] if updates else []),
    )

    return stacked(options, gathered("job", [field.name for field in fields(DataflowJob)], DataflowJob))


def as_s3(*places: tuple[str | None, str]) -> None:
    """Raise `CimlError` unless all places, (place, option) pairs, are on S3; None is left out."""
    from ciml.pipelines.dataflow.settings import check_on_s3

    for place, option in places:
        if place is not None:
            check_on_s3(place, option)


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
