"""``ciml cluster``: clusters of runs, compared with their labels and metadata."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from ciml.cli.commands.data.plot import dataset_argument, dataset_name, output_options
from ciml.cli.options import data_path_option
from ciml.cli.progress import progress_bar
from ciml.cli.tables import print_table

if TYPE_CHECKING:
    from ciml.reports.clusters.cluster import Clustering


@click.command("cluster")
@dataset_argument()
@data_path_option()
@click.option("--only", metavar="CLASS", help="Class of the runs to cluster, such as failed.  [default: all]")
@click.option(
    "--split",
    "splits",
    multiple=True,
    type=click.Choice(["train", "dev", "test"]),
    help="Split of the runs to cluster; may be repeated.  [default: all]",
)
@click.option(
    "--first",
    type=click.IntRange(1),
    metavar="WINDOWS",
    help="Number of leading windows to compare; shorter runs are left out.  [default: all, with padding]",
)
@click.option(
    "--against",
    multiple=True,
    metavar="LABEL",
    help="Label or metadata to compare with, such as build_name or provider; may be repeated."
    "  [default: the data set's label; with --only, build_name]",
)
@click.option("--k", type=click.IntRange(1, 100), help="Number of clusters.  [default: of the best silhouette]")
@click.option("--max-k", "most_k", type=click.IntRange(2, 100), default=10, help="Largest number of clusters to try.")
@click.option(
    "--map",
    "projection",
    type=click.Choice(["pca", "tsne"]),
    default="pca",
    help="Projection of the runs to two dimensions.",
)
@click.option("--json", "as_json", is_flag=True, help="JSON output, without the cluster of each run.")
@output_options
def command(
    name: str | None,
    dataset: str | None,
    data_path: str,
    splits: tuple[str, ...],
    as_json: bool,
    output: str | None,
    **options: Any,
) -> None:
    """Cluster the runs of a data set.

    It clusters normalised examples by k-means and compares the clusters with labels and metadata. --output (default
    NAME-clusters) gets clusters.json with the cluster of each run, the plots as PNG and SVG, and the page index.html.
    The same data set, options and seed give the same clusters.

    \b
    Example:
      ciml cluster cpu-load --only failed --against build_name --data-path DATA
      ciml cluster cpu-load --k 4 --map tsne --data-path DATA
    """
    from ciml.data_root import DataRoot
    from ciml.digest import canonical_json
    from ciml.reports.clusters.cluster import ClusterOptions, cluster_dataset
    from ciml.reports.clusters.page import cluster_page
    from ciml.reports.page import save
    from ciml.storage import open_store
    from ciml.transforms.examples.prepare import SPLITS

    chosen = dataset_name(name, dataset)
    request = ClusterOptions(splits=tuple(split for split in SPLITS if not splits or split in splits), **options)
    with progress_bar("clustering") as progress:
        clustering = cluster_dataset(DataRoot.open(data_path).dataset(chosen), request, progress)
    value = clustering.to_json()
    folder = open_store(output or f"{chosen}-clusters")
    page = save(folder, cluster_page(clustering), {"clusters.json": canonical_json(value) + b"\n"})
    if as_json:
        import json

        click.echo(json.dumps({key: part for key, part in value.items() if key != "assignments"}, indent=2))
        return
    _show(clustering)
    click.echo(page)


def _show(clustering: Clustering) -> None:
    from ciml.reports.drawing import shown

    fact = next(iter(clustering.facts))
    rows = []
    for trial in clustering.tried:
        agreed = clustering.agreements[trial.k][fact]
        numbers: list[Any] = [trial.distortion, trial.silhouette, clustering.lengths[trial.k]]
        numbers += (
            [agreed.rand, agreed.random_rand_95, agreed.mutual, agreed.random_mutual_95] if agreed else [None] * 4
        )
        mark = "*" if trial.k == clustering.chosen.k else ""
        rows.append([f"{mark}{trial.k}", *("–" if number is None else f"{number:.3f}" for number in numbers)])
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
