"""Draw the plots of a clustering.

Build the page of a clustering.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from ciml.reports.clusters.cluster import Clustering
from ciml.reports.dataset import plots
from ciml.reports.dataset.views import Groups, courses, grouped
from ciml.reports.drawing import (
    COLORS,
    DASHES,
    WIDE,
    Plot,
    colors_of,
    distinct,
    legend,
    percent,
    runs_of,
    seconds,
    shown,
    whole_numbers,
)
from ciml.reports.page import Page, Section, Table, Tile
from ciml.training.experiments.clustering import Agreement, Shares

if TYPE_CHECKING:
    from matplotlib.figure import Figure

#: Maps of more points are drawn as an image.
_MOST_VECTORS = 1500


def choice_plot(found: Clustering) -> Plot:
    """Plot distortion and silhouette by k."""
    ks = [each.k for each in found.tried]

    def paint(figure: Figure) -> None:
        left, right = figure.subplots(1, 2)
        left.plot(ks, [each.distortion for each in found.tried], "o-", color=COLORS[0])
        left.set_ylabel("mean distance to the centre")
        left.set_title(f"The elbow is at {found.elbow}")
        left.axvline(found.elbow, color="#888888", linestyle=":", linewidth=1)
        scored = [(each.k, each.silhouette) for each in found.tried if each.silhouette is not None]
        if scored:
            right.plot(*zip(*scored, strict=True), "o-", color=COLORS[5])
        right.set_ylabel("mean silhouette")
        right.set_ylim(min(0.0, *(score for _, score in scored)) if scored else 0, 1)
        right.set_title(
            "no silhouette" if found.silhouette is None else f"The best silhouette is at {found.silhouette}"
        )
        if found.silhouette is not None:
            right.axvline(found.silhouette, color="#888888", linestyle=":", linewidth=1)
        for axes in (left, right):
            axes.set_xlabel("k, number of clusters")
            axes.set_xlim(min(ks) - 0.3, max(ks) + 0.3)
            whole_numbers(axes.xaxis, 10)

    if found.silhouette is None:
        title = "All runs are alike: one cluster"
    elif found.silhouette == found.elbow:
        title = f"Elbow and silhouette both suggest {found.elbow} clusters"
    else:
        title = f"The elbow suggests {found.elbow} clusters, the silhouette {found.silhouette}"
    caption = (
        "Distance falls with every additional cluster; beyond the elbow, it falls little. The silhouette (-1 to 1) "
        "shows how much nearer a run is to its own cluster than to the next: below 0.25 there is hardly any structure."
    )
    return Plot("choice", title, caption, (WIDE, 3.1), paint)


def shares_plot(found: Clustering, name: str, table: Shares, number: int) -> Plot:
    """Plot clusters × classes twice: shares of each class, and shares of each cluster."""
    groups = grouped(found.known[name], 15)
    counts = np.zeros((len(table.counts), len(groups.names)), np.int64)
    np.add.at(counts, (found.chosen.of, groups.of), 1)
    of_class = counts / counts.sum(axis=0, keepdims=True)
    of_cluster = counts / counts.sum(axis=1, keepdims=True)

    def paint(figure: Figure) -> None:
        grid = figure.subplots(1, 2, sharey=True)
        for axes, values, heading in (
            (grid[0], of_class.T, "share of the class in the cluster"),
            (grid[1], of_cluster.T, "share of the cluster in the class"),
        ):
            axes.imshow(100 * values, cmap="Blues", vmin=0, vmax=100, aspect="auto")
            axes.set_title(heading)
            axes.set_xticks(np.arange(len(counts)), [f"{each}" for each in range(len(counts))])
            axes.set_yticks(
                np.arange(len(groups.names)),
                [f"{each} ({count:,})" for each, count in zip(distinct(groups.names, 22), groups.counts, strict=True)],
                fontsize=8,
            )
            axes.set_xlabel("cluster")
            axes.grid(False)
            if len(counts) <= 10:
                for row, column in np.ndindex(values.shape):
                    color = "white" if values[row, column] > 0.5 else "black"
                    text = f"{100 * values[row, column]:.0f}"
                    axes.annotate(text, (column, row), ha="center", va="center", color=color, fontsize=8)

    cluster, group = np.unravel_index(int(np.argmax(np.where(counts >= 2, of_class * of_cluster, 0))), counts.shape)
    kind = shown(groups.names[group])
    title = (
        f"Cluster {cluster} is the most uniform: it has {percent(of_class[cluster, group])} of {kind}, "
        f"and {percent(of_cluster[cluster, group])} of it is {kind}"
    )
    caption = f"Per cent, by {name}. Rows add up to 100 in the left plot, columns in the right one."
    return Plot(f"shares-{number}", title, caption, (WIDE, 1.5 + 0.3 * len(groups.names)), paint)


def map_plot(found: Clustering) -> Plot:
    """Plot the runs in the plane twice, coloured by label and by cluster."""
    name, values = next(iter(found.known.items()))
    sides = ((grouped(values), f"by {shown(name)}"), (_few(found.groups()), "by cluster"))
    order = np.random.default_rng(found.wanted.seed).permutation(len(found.plane))  # no class hides the others

    def paint(figure: Figure) -> None:
        for axes, (groups, heading) in zip(figure.subplots(1, 2, sharex=True, sharey=True), sides, strict=True):
            colors = np.array(colors_of(groups.names), object)
            axes.scatter(
                found.plane[order, 0],
                found.plane[order, 1],
                s=20 if len(order) < 500 else 9,
                c=colors[groups.of[order]].tolist(),
                alpha=0.7,
                linewidths=0,
                rasterized=len(order) > _MOST_VECTORS,
            )
            axes.set_title(heading)
            axes.set_xlabel(_axis(found, 0))
            for color, group, count in zip(colors, distinct(groups.names, 20), groups.counts, strict=False):
                axes.scatter([], [], s=22, color=color, label=f"{group} ({count:,})")
            axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.17), ncols=2, fontsize=8)
        figure.axes[0].set_ylabel(_axis(found, 1))

    title = f"{len(found.plane):,} runs in the plane, by {shown(name)} and by cluster"
    caption = "Two axes show only part of the distances: see the share of the variance on each axis."
    if found.wanted.projection == "tsne":
        caption = "t-SNE keeps neighbours together; distances between groups and their sizes have no meaning."
    return Plot("map", title, caption, (WIDE, 4.9), paint)


def _axis(found: Clustering, axis: int) -> str:
    if not found.variance:
        return f"t-SNE {axis + 1}, no unit"
    return f"principal component {axis + 1} ({percent(found.variance[axis])} of the variance)"


def _few(groups: Groups) -> Groups:
    """Merge the groups beyond the seventh, so that there are enough colours."""
    if len(groups.names) <= len(COLORS):
        return groups
    return grouped(np.array(groups.names, object)[groups.of])


def agreement_plot(found: Clustering) -> Plot | None:
    """Plot the adjusted Rand index by k beside that of random assignments. None if no fact varies."""
    rows = [
        (fact, [(k, each[fact]) for k, each in sorted(found.agreements.items()) if each[fact] is not None])
        for fact in found.known
    ]
    rows = [(fact, pairs) for fact, pairs in rows if pairs][: len(COLORS)]
    if not rows:
        return None

    def paint(figure: Figure) -> None:
        axes = figure.add_subplot()
        for (fact, pairs), color, dash in zip(rows, COLORS, DASHES, strict=False):
            ks = [k for k, _ in pairs]
            agreed: Any = [each for _, each in pairs]
            axes.plot(ks, [each.rand for each in agreed], "o", linestyle=dash, color=color, label=shown(fact))
            random = [each.random_rand_95 for each in agreed]
            axes.fill_between(ks, 0, random, color=color, alpha=0.2, linewidth=0, label=f"{shown(fact)}, random")
        axes.set_xlabel("k, number of clusters")
        axes.set_ylabel("adjusted Rand index")
        whole_numbers(axes.xaxis, 10)
        legend(figure, axes)

    fact, pairs = rows[0]
    k, best = max(pairs, key=lambda pair: (pair[1].rand if pair[1] else 0, -pair[0]))
    title = f"Clusters agree most with {shown(fact)} at k = {k}: adjusted Rand {best.rand if best else 0:.2f} of 1"
    caption = (
        "1 is the same partition, 0 random; 95 % of random assignments to clusters of the same sizes are in the band."
    )
    return Plot("agreement", title, caption, (WIDE, 3.2), paint)


#: Number of features whose courses are drawn.
MOST_COURSES = 6


def cluster_page(found: Clustering) -> Page:
    """Return the page: number of clusters, agreement with labels, then the clusters themselves."""
    wanted = found.wanted
    runs = found.runs
    chosen = found.chosen
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
    drawn = agreement_plot(found)
    tables = found.tables()
    sections = [
        Section(
            "How many clusters",
            tables=(_tried(found, name),),
            plots=(choice_plot(found), *([drawn] if drawn else [])),
        ),
        *(
            Section(
                f"Clusters × {fact}",
                "Pairs without runs are left out; shares above one half are highlighted.",
                tables=(_shares(table, fact),),
                plots=(shares_plot(found, fact, table, number),),
            )
            for number, (fact, table) in enumerate(tables.items(), 1)
        ),
        Section("Map", plots=(map_plot(found),)),
        Section(
            "Features by cluster",
            (plots.AGGREGATES_CAPTION if runs.aggregated else plots.COURSES_CAPTION)
            + " Only the features in which the clusters differ most are drawn.",
            tables=(_nearest(found),),
            plots=tuple(
                plots.course_plot(runs, found.groups(), course, number)
                for number, course in enumerate(courses(runs, found.groups(), distinctive_features(found)), 1)
            ),
        ),
    ]
    return Page(f"Clusters of {runs.dataset}", lead, tiles, tuple(sections))


def distinctive_features(found: Clustering) -> list[int]:
    """Return the positions of the features in which the clusters' mean normalised examples differ most, at most six."""
    runs = found.runs
    of = found.chosen.of
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
                of_class = table.of_class[cluster, at]
                of_cluster = table.of_cluster[cluster, at]
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
