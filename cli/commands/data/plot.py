"""``ciml plot`` (``ciml-plot-data`` in the talk): plots of a data set or of one log, on one page."""

from __future__ import annotations

import os

import click

from ciml.cli.command import make_command
from ciml.cli.options import S3Environment
from ciml.cli.output import progress_bar
from ciml.errors import CimlError
from ciml.options import argument, option


class OutputOptions(S3Environment):
    """The output of a report.

    Attributes:
      output: Folder or s3:// prefix of the files; existing ones are replaced. [default: a folder named after NAME]
    """

    output: str | None = option(kind="place", flags="--output --data-plots-folder", metavar="FOLDER")


class ReportOptions(OutputOptions):
    """The data set and the output of a report; a data set may be named by an option, as in the talk.

    Attributes:
      dataset: Data set, in place of NAME.
      seed: Random seed.
    """

    name: str | None = argument("[NAME]", required=False)
    dataset: str | None = option(metavar="NAME")
    seed: int = option(0, click.IntRange(0, 2**32 - 1))

    def dataset_name(self) -> str:
        """Return the data set of NAME or ``--dataset``. Raises `click.UsageError` for none or two different ones."""
        if (chosen := self.name or self.dataset) is None:
            raise click.UsageError("no data set: give NAME or --dataset NAME")
        if self.name and self.dataset and self.name != self.dataset:
            raise click.UsageError(f"two data sets: {self.name!r} and --dataset {self.dataset!r}; give one")
        return chosen


class PlotOptions(ReportOptions):
    """Options of ``ciml plot``.

    Attributes:
      features_regex: Pattern of the features or columns whose courses are plotted. [default: the first 30]
      zone: Zone of a log that names none, or an ambiguous one.
    """

    name: str | None = argument("[NAME|FILE]", required=False)
    data_path: str | None = option(kind="data")
    features_regex: str | None = option(metavar="REGEX")
    zone: str | None = option(metavar="ZONE")


@make_command("plot")
def command(options: PlotOptions) -> None:
    """Plot a data set, or one log.

    The plots of a data set show runs by class, by day and by job, their durations, the course of each feature by class,
    and examples as the estimator's input. Those of a log, an existing FILE of dstat or dool, show the course of its
    columns. --output (default NAME-plots) gets each plot as PNG and SVG, and a self-contained page index.html. The same
    data set and seed give the same plots.

    \b
    Example:
      ciml plot dstat-csv_log.txt.gz
      ciml plot dstat-csv_log.txt.gz --zone America/Chicago
      ciml plot cpu-load --data-path DATA
      ciml plot cpu-load --features-regex usr --output s3://reports/cpu-load --data-path DATA
    """
    pattern = options.features_regex
    if options.name is not None and options.dataset is None and _is_log(options.name):
        from ciml.reports.dataset.log import plot_log

        output = options.output or f"{_stem(options.name)}-plots"
        click.echo(plot_log(options.name, output, features_regex=pattern, zone=options.zone))
        return
    if options.zone is not None:
        raise click.UsageError("--zone is of a log; a data set has its times")
    from ciml.data_root import DataRoot
    from ciml.reports.dataset.render import plot_dataset

    name = options.dataset_name()
    if options.data_path is None:
        raise click.UsageError(f"no file {name!r}, and no data set without --data-path DATA")
    dataset = DataRoot.open(options.data_path).dataset(name)
    output = options.output or f"{name}-plots"
    with progress_bar("reading examples") as progress:
        click.echo(plot_dataset(dataset, output, features_regex=pattern, seed=options.seed, progress=progress))


def _is_log(name: str) -> bool:
    """Return whether a log is meant, not a data set. Raises `CimlError` for a path to something else."""
    if os.path.isfile(name):
        return True
    if os.sep in name:
        fault = "is a folder; give one log" if os.path.isdir(name) else "no such file"
        raise CimlError(f"{name}: {fault}")
    return False


def _stem(path: str) -> str:
    return os.path.basename(path).removesuffix(".gz").rpartition(".")[0] or os.path.basename(path)
