"""``ciml plot`` and ``ciml-plot-data``: a data set as plots and one page."""

from __future__ import annotations

import click

from cli.options import data_path_option
from cli.plot_options import dataset_argument, dataset_name, output_options
from cli.progress_bar import progress_bar


@click.command("plot")
@dataset_argument
@data_path_option()
@click.option(
    "--features-regex",
    metavar="REGEX",
    help="Pattern of the features whose courses are plotted.  [default: the first 30]",
)
@output_options
def command(
    name: str | None, dataset: str | None, data_path: str, features_regex: str | None, output: str | None, seed: int
) -> None:
    """Plot a data set.

    The plots show runs by class, by day and by job, their durations, the course of each feature by class, and examples
    as the estimator's input. --output (default NAME-plots) gets each plot as PNG and SVG, and a self-contained page
    index.html. The same data set and seed give the same plots.

    \b
    Example:
      ciml plot cpu-load --data-path DATA
      ciml plot cpu-load --features-regex usr --output s3://reports/cpu-load --data-path DATA
    """
    from ciml.data_root import DataRoot
    from reports.dataset.render import plot_dataset

    chosen = dataset_name(name, dataset)
    with progress_bar("reading examples") as progress:
        page = plot_dataset(
            DataRoot.open(data_path).dataset(chosen),
            output or f"{chosen}-plots",
            features_regex=features_regex,
            seed=seed,
            progress=progress,
        )
    click.echo(page)
