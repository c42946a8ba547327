"""Options of jobs on Dataflow: ``--runner dataflow`` of services and batch commands."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from functools import wraps
from typing import TYPE_CHECKING, Any

import click

from ciml.cli.options import Option, stacked
from ciml.errors import CimlError

if TYPE_CHECKING:
    from ciml.pipelines.dataflow.settings import DataflowSettings

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

    def check_unused(self, beam_options: Sequence[str] = ()) -> None:
        """Raise `CimlError` if an option of the job was given without ``--runner dataflow``.

        ``beam_options`` are those of a command that has no other use for them.

        The file of settings may be given: it comes from a variable of the environment.
        """
        given = {
            "--template": self.template, "--job-name": self.job_name, "--submit": self.submit, "--update": self.update,
            "--beam-option": beam_options,
        }  # fmt: skip
        for option, value in given.items():
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


def as_s3(*places: tuple[str | None, str]) -> None:
    """Raise `CimlError` unless all places, (place, option) pairs, are on S3; None is left out."""
    from ciml.pipelines.dataflow.checks import check_on_s3

    for place, option in places:
        if place is not None:
            check_on_s3(place, option)
