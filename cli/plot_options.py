"""What the commands that draw share on the command line."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click

from cli.options import s3_place
from cli.s3_options import s3_options

F = TypeVar("F", bound=Callable[..., Any])


def dataset_argument(command: F) -> F:
    """NAME, or ``--dataset NAME`` as the talk writes it; as ``name`` and ``dataset``, for `dataset_name`."""
    command = click.option("--dataset", metavar="NAME", help="The data set, as the talk names it: the same as NAME.")(
        command
    )
    return click.argument("name", required=False)(command)


def dataset_name(name: str | None, dataset: str | None) -> str:
    """The data set that was named, one way or the other. Raises `click.UsageError` where it is none or two."""
    if (chosen := name or dataset) is None:
        raise click.UsageError("name a data set: NAME, or --dataset NAME")
    if name and dataset and name != dataset:
        raise click.UsageError(f"two data sets are named, {name!r} and {dataset!r}")
    return chosen


def output_option(command: F) -> F:
    """``--output`` as ``output``, None without."""
    return click.option(
        "--output",
        "--data-plots-folder",
        metavar="FOLDER",
        callback=s3_place,
        help="A folder or an s3:// prefix for the files; those of the same names are written over.",
    )(command)


def output_options(command: F) -> F:
    """`output_option`, ``--seed``, and the talk's S3 options."""
    seed = click.option("--seed", type=click.IntRange(0, 2**32 - 1), default=0, show_default=True, help="Of chance.")
    return output_option(seed(s3_options(command)))
