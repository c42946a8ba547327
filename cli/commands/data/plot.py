"""``ciml plot``, and ``ciml-plot-data``: a data set as plots and one page."""

from __future__ import annotations

import click

from cli.options import data_path_option
from cli.plot_options import dataset_argument, dataset_name, output_options
from cli.progress_bar import progress_bar


@click.command(
    "plot",
    epilog="Example: ciml plot cpu-load --data-path DATA, then open cpu-load-plots/index.html.",
    short_help="Draw a data set.",
)
@dataset_argument
@data_path_option()
@click.option(
    "--features-regex",
    metavar="REGEX",
    help="Draw the courses of these features alone, chosen as in a definition.  [default: the first 30]",
)
@output_options
def command(
    name: str | None, dataset: str | None, data_path: str, features_regex: str | None, output: str | None, seed: int
) -> None:
    """Draw the data set NAME: runs by class, by day and by job, how long they run, the course of each feature by class,
    and examples as an estimator sees them.

    Each plot is a PNG and an SVG in --output (NAME-plots by default); index.html holds all of them and needs nothing
    else. The same data set and seed give the same plots.
    """
    from ciml.storage.open import open_store
    from reports.dataset.render import plot_dataset

    chosen = dataset_name(name, dataset)
    with progress_bar("reading examples") as progress:
        page = plot_dataset(
            open_store(data_path),
            chosen,
            output or f"{chosen}-plots",
            features_regex=features_regex,
            seed=seed,
            progress=progress,
        )
    click.echo(page)
