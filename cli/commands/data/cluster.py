"""``ciml cluster``: clusters of runs, compared with their labels and metadata."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Literal

import click

from ciml.cli.command import make_command
from ciml.cli.commands.data.plot import ReportOptions
from ciml.cli.options import Data, Json
from ciml.cli.output import print_table, progress_bar
from ciml.options import option, repeated

if TYPE_CHECKING:
    from ciml.reports.clusters import Clustering


class ClusterCommand(ReportOptions, Data, Json):
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
    splits: tuple[str, ...] = repeated(click.Choice(["train", "dev", "test"]))
    first: int | None = option(kind="count", metavar="WINDOWS")
    against: tuple[str, ...] = repeated(metavar="LABEL")
    k: int | None = option(kind=click.IntRange(1, 100))
    most_k: int = option(10, click.IntRange(2, 100), flags="--max-k")
    projection: Literal["pca", "tsne"] = option("pca", click.Choice(["pca", "tsne"]), flags="--map")


@make_command("cluster")
def command(options: ClusterCommand) -> None:
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
    from ciml.transforms.examples.prepare import SPLITS

    name = options.dataset_name()
    request = ClusterOptions(
        options.only,
        tuple(split for split in SPLITS if not options.splits or split in options.splits),
        options.first,
        options.against,
        options.k,
        options.most_k,
        options.projection,
        options.seed,
    )
    with progress_bar("clustering") as progress:
        clustering = cluster_dataset(options.root.dataset(name), request, progress)
    value = clustering.to_json()
    folder = open_store(options.output or f"{name}-clusters")
    page = save(folder, cluster_page(clustering), {"clusters.json": canonical_json(value) + b"\n"})
    del value["assignments"]
    options.show(clustering, partial(_show, page), lambda _: value)


def _show(page: str, clustering: Clustering) -> None:
    from ciml.reports.drawing import shown

    fact = next(iter(clustering.facts))
    rows = []
    for trial in clustering.tried:
        agreed = clustering.agreements[trial.k][fact]
        measures = (
            [agreed.rand, agreed.random_rand_95, agreed.mutual, agreed.random_mutual_95] if agreed else [None] * 4
        )
        mark = "*" if trial.k == clustering.chosen.k else ""
        rows.append([f"{mark}{trial.k}", trial.distortion, trial.silhouette, clustering.lengths[trial.k], *measures])
    headings = ["k", "distance", "silhouette", "lengths", "adj. Rand", "random", "NMI", "random"]
    title = f"{len(clustering.runs):,} runs; agreement with {shown(fact)}"
    print_table(headings, rows, title=title, right=headings)
    for fact, table in clustering.tables().items():
        headings = ["cluster", *map(shown, table.names[:6])]
        rows = []
        for cluster, counts in enumerate(table.counts):
            cells = [
                f"{count:,}  {100 * of_class:.0f} %  {100 * of_cluster:.0f} %" if count else "–"
                for count, of_class, of_cluster in zip(
                    counts[:6], table.of_class[cluster], table.of_cluster[cluster], strict=False
                )
            ]
            rows.append([f"{cluster}", *cells])
        print_table(headings, rows, title=f"{shown(fact)}: runs, % of class, % of cluster", right=headings)
        if len(table.names) > 6:
            click.echo(f"{len(table.names) - 6} more are on the page and in clusters.json")
    click.echo(page)
