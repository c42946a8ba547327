"""``ciml plot`` (``ciml-plot-data`` in the talk): plots of a data set or of one log, on one page."""

from __future__ import annotations

import os

import click

from ciml.cli.options import Option, data_path_option, s3_options, s3_place, stacked
from ciml.cli.progress import progress_bar
from ciml.errors import CimlError


def dataset_argument(metavar: str = "[NAME]") -> Option:
    """NAME, or ``--dataset NAME`` as in the talk; as ``name`` and ``dataset``, for `dataset_name`."""
    dataset = click.option("--dataset", metavar="NAME", help="Data set, in place of NAME.")
    return stacked(click.argument("name", required=False, metavar=metavar), dataset)


def dataset_name(name: str | None, dataset: str | None) -> str:
    """Return the data set of NAME or ``--dataset``. Raises `click.UsageError` for none or two different ones."""
    if (chosen := name or dataset) is None:
        raise click.UsageError("no data set: give NAME or --dataset NAME")
    if name and dataset and name != dataset:
        raise click.UsageError(f"two data sets: {name!r} and --dataset {dataset!r}; give one")
    return chosen


#: ``--output`` as ``output``, None without.
output_option = click.option(
    "--output",
    "--data-plots-folder",
    metavar="FOLDER",
    callback=s3_place,
    help="Folder or s3:// prefix of the files; existing ones are replaced.  [default: a folder named after NAME]",
)

#: `output_option`, ``--seed``, and the talk's S3 options.
output_options = stacked(
    output_option, click.option("--seed", type=click.IntRange(0, 2**32 - 1), default=0, help="Random seed."), s3_options
)


@click.command("plot")
@dataset_argument("[NAME|FILE]")
@data_path_option(required=False)
@click.option(
    "--features-regex",
    metavar="REGEX",
    help="Pattern of the features or columns whose courses are plotted.  [default: the first 30]",
)
@click.option("--zone", metavar="ZONE", help="Zone of a log that names none, or an ambiguous one.")
@output_options
def command(
    name: str | None,
    dataset: str | None,
    data_path: str | None,
    features_regex: str | None,
    zone: str | None,
    output: str | None,
    seed: int,
) -> None:
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
    if name is not None and dataset is None and _is_log(name):
        from ciml.reports.dataset.log import plot_log

        click.echo(plot_log(name, output or f"{_stem(name)}-plots", features_regex=features_regex, zone=zone))
        return
    if zone is not None:
        raise click.UsageError("--zone is of a log; a data set has its times")
    from ciml.data_root import DataRoot
    from ciml.reports.dataset.render import plot_dataset

    chosen = dataset_name(name, dataset)
    if data_path is None:
        raise click.UsageError(f"no file {chosen!r}, and no data set without --data-path DATA")
    with progress_bar("reading examples") as progress:
        page = plot_dataset(
            DataRoot.open(data_path).dataset(chosen),
            output or f"{chosen}-plots",
            features_regex=features_regex,
            seed=seed,
            progress=progress,
        )
    click.echo(page)


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
