"""``ciml experiment report``."""

from __future__ import annotations

from collections.abc import Sequence

import click

from ciml.cli.commands.data.plot import output_option
from ciml.cli.options import data_path_option, s3_options
from ciml.cli.progress import progress_bar


@click.command("report")
@click.argument("experiments", nargs=-1, metavar="[EXPERIMENT]…")
@click.option(
    "--dataset",
    "datasets",
    multiple=True,
    metavar="NAME",
    help="Data set of the results; may be repeated.  [default: all]",
)
@data_path_option()
@output_option
@s3_options
def report(experiments: tuple[str, ...], datasets: tuple[str, ...], data_path: str, output: str | None) -> None:
    """Write HTML reports of experiments.

    A report has the figures of each EXPERIMENT (default all) with intervals beside the baselines, confusion, errors by
    class, curves, calibration, learning, jobs and providers, folds, and other data sets. A single result is index.html
    in --output (default EXPERIMENT-report, DATASET-report or experiments-report). Of several results, index.html
    compares them, and DATASET/EXPERIMENT/index.html is the page of each. Pages are self-contained, with plots as PNG
    and SVG beside them.

    \b
    Example:
      ciml experiment report dnn-5x100 --dataset cpu-load --data-path DATA
      ciml experiment report dnn-5x100 forest --dataset cpu-load --output s3://reports/cpu-load --data-path DATA
    """
    from ciml.data_root import DataRoot
    from ciml.reports.experiments.render import report_experiments

    folder = output or default_folder(experiments, datasets)
    with progress_bar("drawing") as progress:
        page = report_experiments(
            DataRoot.open(data_path).experiments, experiments, datasets, folder, progress=progress
        )
    click.echo(page)


def default_folder(experiments: Sequence[str], datasets: Sequence[str]) -> str:
    """Return the default folder of a report, named after a single experiment or data set."""
    name = experiments[0] if len(experiments) == 1 else datasets[0] if len(datasets) == 1 else "experiments"
    return f"{name}-report"
