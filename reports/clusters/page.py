"""Build the page of a clustering, and draw its plots."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from ciml.reports.clusters import Clustering
from ciml.reports.dataset.render import course_plots, courses_caption
from ciml.reports.dataset.views import Groups, group_values
from ciml.reports.drawing import (
    COLORS,
    DASHES,
    WIDE,
    Plot,
    add_legend,
    colors_of,
    distinct,
    draw_matrix,
    percent,
    runs_of,
    seconds,
    shown,
    use_whole_numbers,
)
from ciml.reports.page import Page, Section, Table, Tile, cells
from ciml.training.experiments.clustering import Shares

if TYPE_CHECKING:
    from matplotlib.figure import Figure

#: Number of features whose courses are drawn.
MOST_COURSES = 6
#: Maps of more points are drawn as an image.
_MOST_VECTORS = 1500
#: Class shares of more clusters are drawn without numbers.
_MOST_NUMBERS = 10
#: Values of a fact in the table, for each cluster.
_MOST_LABELS = 8


def cluster_page(clustering: Clustering) -> Page:
    """Return the page: number of clusters, agreement with labels, then the clusters themselves."""
    options = clustering.options
    runs = clustering.runs
    chosen = clustering.chosen
    fact = next(iter(clustering.facts))
    agreed = clustering.agreements[chosen.k][fact]
    length = f"the first {options.first} windows" if options.first else "whole examples with padding"
    lead = f"K-means over {length}, normalised by the training split; seed {options.seed}."
    if len(runs) < clustering.of_runs:
        lead += f" {len(runs):,} of {clustering.of_runs:,} runs, sampled evenly."
    rand = "–"
    random = "one class only"
    if agreed is not None:
        rand = f"{agreed.rand:.2f}"
        random = f"random assignments: at most {agreed.random_rand_95:.2f} (95 %)"
    explained = clustering.lengths[chosen.k]
    lengths = "–" if explained is None else percent(explained)
    tiles = (
        Tile("runs", f"{len(runs):,}", f"only {options.only}" if options.only else "of all classes"),
        Tile("clusters", f"{chosen.k}", "set by --k" if options.k else "best silhouette"),
        Tile("silhouette", "–" if chosen.silhouette is None else f"{chosen.silhouette:.2f}", "-1 to 1"),
        Tile(f"adjusted Rand with {fact}", rand, random),
        Tile("lengths explained", lengths, "share of the variance of the runs' lengths"),
    )
    sections = (
        Section("How many clusters", trials_table(clustering), choice_plot(clustering), agreement_plot(clustering)),
        *(
            Section(
                f"Clusters × {name}",
                f"The {_MOST_LABELS} values with the most runs of each cluster; shares above one half are highlighted.",
                _shares(table, name),
                shares_plot(clustering, name, number),
            )
            for number, (name, table) in enumerate(clustering.tables().items(), 1)
        ),
        Section("Map", map_plot(clustering)),
        Section(
            "Features by cluster",
            courses_caption(runs, "Only the features in which the clusters differ most are drawn."),
            _nearest(clustering),
            *course_plots(runs, clustering.groups(), distinctive_features(clustering)),
        ),
    )
    return Page(f"Clusters of {runs.dataset}", lead, tiles, sections)


def choice_plot(clustering: Clustering) -> Plot:
    """Plot distortion and silhouette by k."""
    ks = [clusters.k for clusters in clustering.tried]
    elbow = clustering.elbow
    silhouette = clustering.silhouette
    scores = {clusters.k: clusters.silhouette for clusters in clustering.tried if clusters.silhouette is not None}

    def paint(figure: Figure) -> None:
        left, right = figure.subplots(1, 2)
        left.plot(ks, [clusters.distortion for clusters in clustering.tried], "o-", color=COLORS[0])
        left.set(ylabel="mean distance to the centre", title=f"The elbow is at {elbow}")
        right.plot(list(scores), list(scores.values()), "o-", color=COLORS[5])
        right.set(ylabel="mean silhouette", ylim=(min([0.0, *scores.values()]), 1))
        right.set_title("no silhouette" if silhouette is None else f"The best silhouette is at {silhouette}")
        for axes, k in ((left, elbow), (right, silhouette)):
            if k is not None:
                axes.axvline(k, color="#888888", linestyle=":", linewidth=1)
            axes.set(xlabel="k, number of clusters", xlim=(min(ks) - 0.3, max(ks) + 0.3))
            use_whole_numbers(axes.xaxis, 10)

    title = f"The elbow suggests {elbow} clusters, the silhouette {silhouette}"
    if silhouette is None:
        title = "All runs are alike: one cluster"
    elif silhouette == elbow:
        title = f"Elbow and silhouette both suggest {elbow} clusters"
    caption = (
        "Distance falls with every additional cluster; beyond the elbow, it falls little. The silhouette (-1 to 1) "
        "shows how much nearer a run is to its own cluster than to the next: below 0.25 there is hardly any structure."
    )
    return Plot("choice", title, caption, (WIDE, 3.1), paint)


def shares_plot(clustering: Clustering, fact: str, number: int) -> Plot:
    """Plot clusters × classes twice: shares of each class, and shares of each cluster."""
    groups = group_values(clustering.facts[fact], 15)
    clusters = int(clustering.chosen.of.max()) + 1
    counts = np.zeros((clusters, len(groups.names)), np.int64)
    np.add.at(counts, (clustering.chosen.of, groups.assigned), 1)
    of_class = counts / counts.sum(axis=0, keepdims=True)
    of_cluster = counts / counts.sum(axis=1, keepdims=True)
    labels = [f"{name} ({count:,})" for name, count in zip(distinct(groups.names, 22), groups.counts, strict=True)]

    def paint(figure: Figure) -> None:
        sides = (("share of the class in the cluster", of_class.T), ("share of the cluster in the class", of_cluster.T))
        for axes, (heading, values) in zip(figure.subplots(1, 2, sharey=True), sides, strict=True):
            texts = {cell: f"{100 * values[cell]:.0f}" for cell in np.ndindex(values.shape)}
            numbers = [f"{cluster}" for cluster in range(clusters)]
            shades: Any = {"dark": values > 0.5, "cmap": "Blues", "vmin": 0, "vmax": 1}
            draw_matrix(axes, values, labels, numbers, texts if clusters <= _MOST_NUMBERS else {}, **shades)
            axes.set(title=heading, xlabel="cluster")

    cluster, group = np.unravel_index(int(np.argmax(np.where(counts >= 2, of_class * of_cluster, 0))), counts.shape)
    kind = shown(groups.names[group])
    title = (
        f"Cluster {cluster} is the most uniform: it has {percent(of_class[cluster, group])} of {kind}, "
        f"and {percent(of_cluster[cluster, group])} of it is {kind}"
    )
    caption = f"Per cent, by {fact}. Rows add up to 100 in the left plot, columns in the right one."
    return Plot(f"shares-{number}", title, caption, (WIDE, 1.5 + 0.3 * len(labels)), paint)


def map_plot(clustering: Clustering) -> Plot:
    """Plot the runs in the plane twice, coloured by label and by cluster."""
    fact, values = next(iter(clustering.facts.items()))
    sides = ((group_values(values), f"by {shown(fact)}"), (_few(clustering.groups()), "by cluster"))
    # in random order, so that no class hides the others
    order = np.random.default_rng(clustering.options.seed).permutation(len(clustering.plane))
    x, y = clustering.plane[order].T

    def paint(figure: Figure) -> None:
        style: Any = {"alpha": 0.7, "linewidths": 0, "rasterized": len(order) > _MOST_VECTORS}
        for axes, (groups, heading) in zip(figure.subplots(1, 2, sharex=True, sharey=True), sides, strict=True):
            colors = np.array(colors_of(groups.names), object)
            axes.scatter(x, y, s=20 if len(order) < 500 else 9, c=colors[groups.assigned[order]].tolist(), **style)
            axes.set(title=heading, xlabel=_axis(clustering, 0))
            for color, name, count in zip(colors, distinct(groups.names, 20), groups.counts, strict=False):
                axes.scatter([], [], s=22, color=color, label=f"{name} ({count:,})")
            axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.17), ncols=2, fontsize=8)
        figure.axes[0].set_ylabel(_axis(clustering, 1))

    title = f"{len(order):,} runs in the plane, by {shown(fact)} and by cluster"
    caption = "Two axes show only part of the distances: see the share of the variance on each axis."
    if clustering.options.projection == "tsne":
        caption = "t-SNE keeps neighbours together; distances between groups and their sizes have no meaning."
    return Plot("map", title, caption, (WIDE, 4.9), paint)


def _axis(clustering: Clustering, axis: int) -> str:
    if not clustering.variance:
        return f"t-SNE {axis + 1}, no unit"
    return f"principal component {axis + 1} ({percent(clustering.variance[axis])} of the variance)"


def _few(groups: Groups) -> Groups:
    """Merge the groups beyond the seventh, so that there are enough colours."""
    if len(groups.names) <= len(COLORS):
        return groups
    return group_values(np.array(groups.names, object)[groups.assigned])


def agreement_plot(clustering: Clustering) -> Plot | None:
    """Plot the adjusted Rand index by k next to the index of random assignments. None if no fact varies."""
    by_fact = {
        fact: {k: agreed for k, by_name in sorted(clustering.agreements.items()) if (agreed := by_name[fact])}
        for fact in clustering.facts
    }
    by_fact = {fact: by_k for fact, by_k in by_fact.items() if by_k}
    if not by_fact:
        return None

    def paint(figure: Figure) -> None:
        axes = figure.add_subplot()
        for (fact, by_k), color, dash in zip(by_fact.items(), COLORS, DASHES, strict=False):
            rand = [agreed.rand for agreed in by_k.values()]
            random = [agreed.random_rand_95 for agreed in by_k.values()]
            axes.plot(list(by_k), rand, "o", linestyle=dash, color=color, label=shown(fact))
            label = f"{shown(fact)}, random"
            axes.fill_between(list(by_k), 0, random, color=color, alpha=0.2, linewidth=0, label=label)
        axes.set(xlabel="k, number of clusters", ylabel="adjusted Rand index")
        use_whole_numbers(axes.xaxis, 10)
        add_legend(figure)

    fact, by_k = next(iter(by_fact.items()))
    k, best = max(by_k.items(), key=lambda item: (item[1].rand, -item[0]))
    title = f"Clusters agree most with {shown(fact)} at k = {k}: adjusted Rand {best.rand:.2f} of 1"
    caption = (
        "1 is the same partition, 0 random; 95 % of random assignments to clusters of the same sizes are in the band."
    )
    return Plot("agreement", title, caption, (WIDE, 3.2), paint)


def distinctive_features(clustering: Clustering) -> list[int]:
    """Return the positions of the features in which the clusters' mean normalised examples differ most, at most six."""
    runs = clustering.runs
    clusters = clustering.chosen.of
    normal = runs.normalisation.apply(runs.inputs)
    means = np.stack([normal[clusters == cluster].mean(axis=0) for cluster in range(int(clusters.max()) + 1)])
    spread = means.var(axis=0).sum(axis=0)
    return sorted(np.argsort(-spread, kind="stable")[:MOST_COURSES].tolist())


def trials_table(clustering: Clustering) -> Table:
    """Return the measures of each number of clusters (* the chosen one), and the agreement with the first fact."""
    fact = next(iter(clustering.facts))
    rows = []
    for clusters in clustering.tried:
        k = clusters.k
        agreed = clustering.agreements[k][fact]
        agreement: tuple[float | None, ...] = (None,) * 4
        if agreed is not None:
            agreement = (agreed.rand, agreed.random_rand_95, agreed.mutual, agreed.random_mutual_95)
        mark = "*" if k == clustering.chosen.k else ""
        rows.append(cells(f"{mark}{k}", clusters.distortion, clusters.silhouette, clustering.lengths[k], *agreement))
    headings = ("k", "distance", "silhouette", "lengths", "adj. Rand", "random", "NMI", "random")
    title = "By number of clusters k (* chosen). Distance: to the centre. Lengths: their explained variance. "
    title += f"Agreement with {fact}; random: 95th percentile of random assignments"
    return Table(headings, tuple(rows), title=title)


def _shares(table: Shares, fact: str) -> Table:
    rows: list[tuple[str, ...]] = []
    best: set[tuple[int, int]] = set()
    for cluster, counts in enumerate(table.counts):
        for label in np.argsort(-counts, kind="stable")[:_MOST_LABELS]:
            if not counts[label]:
                continue
            shares = (table.of_class[cluster, label], table.of_cluster[cluster, label])
            best |= {(len(rows), column) for column, share in enumerate(shares, 3) if share > 0.5}
            texts = (f"{100 * share:.1f} %" for share in shares)
            rows.append(cells(f"{cluster}", shown(table.names[label], 80), counts[label], *texts))
    headings = ("cluster", fact, "runs", "share of class", "share of cluster")
    return Table(headings, tuple(rows), words=2, best=frozenset(best))


def _nearest(clustering: Clustering) -> Table:
    runs = clustering.runs
    rows = []
    for cluster, count in enumerate(np.bincount(clustering.chosen.of)):
        n_windows = float(np.median(runs.n_windows[clustering.chosen.of == cluster]))
        length = "" if runs.aggregated else seconds(n_windows * runs.interval_s)
        nearest = runs.run_id[clustering.chosen.nearest(cluster, 3)].tolist()
        rows.append((f"{cluster}", ", ".join(nearest), runs_of(int(count)), length))
    return Table(("cluster", "runs nearest to the centre", "size", "median length"), tuple(rows), words=2)
