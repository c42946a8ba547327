"""``ciml plot`` (``ciml-plot-data`` in the talk) and ``ciml cluster``: pages about a data set, or about one log."""

from __future__ import annotations

import os
from functools import partial
from typing import TYPE_CHECKING, Literal

import click
from click.core import ParameterSource

from ciml.cli.command import call_with_options, make_command
from ciml.cli.options import Data, Json, S3Environment, require_data
from ciml.cli.output import print_table, progress_bar
from ciml.datasets.definition import SPLITS
from ciml.errors import CimlError
from ciml.options import argument, option, repeated

if TYPE_CHECKING:
    from ciml.reports.clusters import Clustering
    from ciml.training.experiments.clustering import Shares

#: Largest number of classes in a printed table; the page and the JSON file have all.
_MOST_CLASSES = 6


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
    data_path: str | None = option(kind="new data")
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

        for name, flag in (("seed", "--seed"), ("data_path", "--data-path")):
            if click.get_current_context().get_parameter_source(name) == ParameterSource.COMMANDLINE:
                raise click.UsageError(f"{flag}: of a data set; {options.name} is a log")
        output = options.output or f"{_stem(options.name)}-plots"
        click.echo(plot_log(options.name, output, features_regex=pattern, zone=options.zone))
        return
    if options.zone is not None:
        raise click.UsageError("--zone: of a log; a data set has its times")
    from ciml.data_root import DataRoot
    from ciml.reports.dataset.render import plot_dataset

    name = options.dataset_name()
    if options.data_path is None:
        raise click.UsageError(f"no file {name!r}, and no data set without --data-path DATA")
    require_data(options.data_path)
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


class ClusterCommandOptions(ReportOptions, Data, Json):
    """Options of ``ciml cluster``.

    Attributes:
      only: Class of the runs to cluster, such as failed. [default: all]
      splits: Split of the runs to cluster; may be repeated. [default: all]
      first: Number of leading windows to compare; shorter runs are left out. [default: all, with padding]
      against: Label or metadata to compare with, such as build_name or provider; may be repeated. [default: the data
        set's label; with --only, build_name]
      k: Number of clusters. [default: of the best silhouette]
      most_k: Largest number of clusters to try.
      projection: Projection of the runs to two dimensions.
      json: JSON output, without the cluster of each run.
    """

    only: str | None = option(metavar="CLASS")
    splits: tuple[str, ...] = repeated(click.Choice(SPLITS))
    first: int | None = option(kind="count", metavar="WINDOWS")
    against: tuple[str, ...] = repeated(metavar="LABEL")
    k: int | None = option(kind=click.IntRange(1, 100))
    most_k: int = option(10, click.IntRange(2, 100), flags="--max-k")
    projection: Literal["pca", "tsne"] = option("pca", click.Choice(["pca", "tsne"]), flags="--map")


@make_command("cluster")
def cluster(options: ClusterCommandOptions) -> None:
    """Cluster the runs of a data set.

    It clusters normalised examples by k-means and compares the clusters with labels and metadata. --output (default
    NAME-clusters) gets clusters.json with the cluster of each run, the plots as PNG and SVG, and the page index.html.
    The same data set, options and seed give the same clusters.

    \b
    Example:
      ciml cluster cpu-load --only failed --against build_name --data-path DATA
      ciml cluster cpu-load --k 4 --map tsne --data-path DATA
    """
    from ciml.digest import canonical_json
    from ciml.reports.clusters import ClusterOptions, cluster_dataset
    from ciml.reports.clusters.page import cluster_page
    from ciml.reports.page import save
    from ciml.storage import open_store

    name = options.dataset_name()
    splits = tuple(split for split in SPLITS if not options.splits or split in options.splits)
    with progress_bar("clustering") as progress:
        request = call_with_options(ClusterOptions, options, splits=splits)
        clustering = cluster_dataset(options.root.dataset(name), request, progress)
    value = clustering.to_json()
    folder = open_store(options.output or f"{name}-clusters")
    page = save(folder, cluster_page(clustering), {"clusters.json": canonical_json(value) + b"\n"})
    del value["assignments"]
    options.show(clustering, partial(_print_clustering, page), lambda _: value)


def _print_clustering(page: str, clustering: Clustering) -> None:
    from ciml.reports.clusters.page import trials_table
    from ciml.reports.drawing import shown

    trials = trials_table(clustering)
    title = f"{len(clustering.runs):,} runs; agreement with {shown(next(iter(clustering.facts)))}"
    print_table(trials.headings, trials.rows, title=title, right=trials.headings)
    for fact, table in clustering.tables().items():
        headings = ["cluster", *map(shown, table.names[:_MOST_CLASSES])]
        rows = [[f"{cluster}", *_share_cells(table, cluster)] for cluster in range(len(table.counts))]
        print_table(headings, rows, title=f"{shown(fact)}: runs, % of class, % of cluster", right=headings)
        if len(table.names) > _MOST_CLASSES:
            click.echo(f"{len(table.names) - _MOST_CLASSES} more are on the page and in clusters.json")
    click.echo(page)


def _share_cells(table: Shares, cluster: int) -> list[str]:
    """Return the number of runs and the shares of the first classes in a cluster."""
    columns = (table.counts[cluster], table.of_class[cluster], table.of_cluster[cluster])
    return [
        f"{count:,}  {100 * of_class:.0f} %  {100 * of_cluster:.0f} %" if count else "–"
        for count, of_class, of_cluster in list(zip(*columns, strict=True))[:_MOST_CLASSES]
    ]
