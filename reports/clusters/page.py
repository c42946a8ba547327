"""Build the page of a clustering."""

from __future__ import annotations

import numpy as np

from ciml.reports.clusters import plots as cluster_plots
from ciml.reports.clusters.cluster import Clustering
from ciml.reports.dataset import feature_plots
from ciml.reports.dataset.views import courses
from ciml.reports.drawing import percent, runs_of, seconds, shown
from ciml.reports.page import Page, Section, Table, Tile
from ciml.training.experiments.clustering import Agreement, Shares

#: Number of features whose courses are drawn.
MOST_COURSES = 6


def cluster_page(found: Clustering) -> Page:
    """Return the page: number of clusters, agreement with labels, then the clusters themselves."""
    wanted, runs, chosen = found.wanted, found.runs, found.chosen
    name = next(iter(found.known))
    agreed = found.agreements[chosen.k][name]
    what = f"only {wanted.only}" if wanted.only else "of all classes"
    length = f"the first {wanted.first} windows" if wanted.first else "whole examples with padding"
    lead = f"K-means over {length}, normalised by the training split; seed {wanted.seed}."
    if len(runs) < found.of_runs:
        lead += f" {len(runs):,} of {found.of_runs:,} runs, sampled evenly."
    tiles = (
        Tile("runs", f"{len(runs):,}", what),
        Tile("clusters", f"{chosen.k}", "set by --k" if wanted.k else "best silhouette"),
        Tile("silhouette", "–" if chosen.silhouette is None else f"{chosen.silhouette:.2f}", "-1 to 1"),
        Tile(f"adjusted Rand with {name}", _rand(agreed), _random(agreed)),
        Tile("lengths explained", _length(found, chosen.k), "share of the variance of the runs' lengths"),
    )
    drawn = cluster_plots.agreement_plot(found)
    tables = found.tables()
    sections = [
        Section(
            "How many clusters",
            tables=(_tried(found, name),),
            plots=(cluster_plots.choice_plot(found), *([drawn] if drawn else [])),
        ),
        *(
            Section(
                f"Clusters × {fact}",
                "Pairs without runs are left out; shares above one half are highlighted.",
                tables=(_shares(table, fact),),
                plots=(cluster_plots.shares_plot(found, fact, table, number),),
            )
            for number, (fact, table) in enumerate(tables.items(), 1)
        ),
        Section("Map", plots=(cluster_plots.map_plot(found),)),
        Section(
            "Features by cluster",
            (feature_plots.AGGREGATES_CAPTION if runs.aggregated else feature_plots.COURSES_CAPTION)
            + " Only the features in which the clusters differ most are drawn.",
            tables=(_nearest(found),),
            plots=tuple(
                feature_plots.course_plot(runs, found.groups(), course, number)
                for number, course in enumerate(courses(runs, found.groups(), distinctive_features(found)), 1)
            ),
        ),
    ]
    return Page(f"Clusters of {runs.dataset}", lead, tiles, tuple(sections))


def distinctive_features(found: Clustering) -> list[int]:
    """Return the positions of the features in which the clusters' mean normalised examples differ most, at most six."""
    runs, of = found.runs, found.chosen.of
    normal = runs.normalisation.apply(runs.inputs)
    means = np.stack([normal[of == cluster].mean(axis=0) for cluster in range(int(of.max()) + 1)])
    spread = means.var(axis=0).sum(axis=0)
    return sorted(np.argsort(-spread, kind="stable")[:MOST_COURSES].tolist())


def _rand(agreed: Agreement | None) -> str:
    return "–" if agreed is None else f"{agreed.rand:.2f}"


def _random(agreed: Agreement | None) -> str:
    return "one class only" if agreed is None else f"random assignments: at most {agreed.random_rand_95:.2f} (95 %)"


def _length(found: Clustering, k: int) -> str:
    share = found.lengths[k]
    return "–" if share is None else percent(share)


def _tried(found: Clustering, name: str) -> Table:
    rows = []
    for each in found.tried:
        agreed = found.agreements[each.k][name]
        mutual = ("–", "–") if agreed is None else (f"{agreed.mutual:.3f}", f"{agreed.random_mutual_95:.3f}")
        rand = ("–", "–") if agreed is None else (f"{agreed.rand:.3f}", f"{agreed.random_rand_95:.3f}")
        silhouette = "–" if each.silhouette is None else f"{each.silhouette:.3f}"
        rows.append((f"{each.k}", f"{each.distortion:.3f}", silhouette, _length(found, each.k), *rand, *mutual))
    headings = ("k", "mean distance", "silhouette", "lengths explained", "adjusted Rand", "random", "NMI", "random")
    title = f"By number of clusters k; agreement with {name}; random: 95th percentile of random assignments"
    return Table(headings, tuple(rows), title=title)


def _shares(table: Shares, fact: str) -> Table:
    rows: list[tuple[str, ...]] = []
    best: set[tuple[int, int]] = set()
    for cluster in range(len(table.counts)):
        for at in np.argsort(-table.counts[cluster], kind="stable")[:8]:
            if table.counts[cluster, at]:
                of_class, of_cluster = table.of_class[cluster, at], table.of_cluster[cluster, at]
                best |= {(len(rows), 3)} if of_class > 0.5 else set()
                best |= {(len(rows), 4)} if of_cluster > 0.5 else set()
                count = f"{table.counts[cluster, at]:,}"
                shares = (f"{100 * of_class:.1f} %", f"{100 * of_cluster:.1f} %")
                rows.append((f"{cluster}", shown(table.names[at], 80), count, *shares))
    headings = ("cluster", fact, "runs", "share of class", "share of cluster")
    return Table(headings, tuple(rows), words=2, best=frozenset(best))


def _nearest(found: Clustering) -> Table:
    rows = []
    for cluster, count in enumerate(np.bincount(found.chosen.of)):
        middle = float(np.median(found.runs.n_windows[found.chosen.of == cluster]))
        length = "" if found.runs.aggregated else seconds(middle * found.runs.interval_s)
        nearest = found.runs.run_id[found.chosen.nearest(cluster, 3)].tolist()
        rows.append((f"{cluster}", ", ".join(nearest), runs_of(int(count)), length))
    return Table(("cluster", "runs nearest to the centre", "size", "median length"), tuple(rows), words=2)
