"""Options and arguments of the commands that plot."""

from __future__ import annotations

import click

from ciml.cli.options import Option, s3_options, s3_place, stacked


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
