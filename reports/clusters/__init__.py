"""The cluster report: groups of runs, compared with labels and metadata, as a page and as JSON.

Uses `ciml.training.experiments.clustering` for the groups. `cluster_dataset` makes the `Clustering` that the page, the
JSON file and the terminal show.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from ciml.data_root import StoredDataset
from ciml.datasets.definition import SPLITS
from ciml.errors import CimlError
from ciml.progress import Progress, no_progress
from ciml.reports.dataset.read import Runs, read_runs
from ciml.reports.dataset.views import Groups, unroll
from ciml.training.experiments.clustering import (
    Agreement,
    Clusters,
    Projection,
    Shares,
    agreement,
    best_silhouette,
    count_distinct,
    elbow,
    explained,
    find_clusters,
    project,
    shares,
)

#: Largest input of k-means in float32 values; larger data sets are sampled evenly.
MAX_VALUES = 1 << 24


@dataclass(frozen=True)
class ClusterOptions:
    """Options of a clustering.

    Attributes:
      only: the class whose runs are clustered; None for all.
      splits: splits of the runs.
      first: number of leading windows to compare; shorter runs are left out. None for whole examples with padding.
      against: names for `ciml.datasets.definition.label_of`. Default: the label, or the job if ``only`` is given.
      k: number of clusters; None for the best silhouette.
      most_k: largest number of clusters to try.
      projection: projection of the map.
      seed: random seed.
    """

    only: str | None = None
    splits: tuple[str, ...] = SPLITS
    first: int | None = None
    against: tuple[str, ...] = ()
    k: int | None = None
    most_k: int = 10
    projection: Projection = "pca"
    seed: int = 0


@dataclass(frozen=True)
class Clustering:
    """The result of a clustering.

    Attributes:
      options: the options.
      runs: the clustered runs; each has arrays. ``inputs`` has ``options.first`` windows if that is set.
      of_runs: number of selected runs, from which ``runs`` were sampled.
      facts: str [n] by name: the facts that the clusters are compared with.
      tried: k-means results by k, from 1 on.
      agreements: by k and by name; None if all runs have the same value.
      lengths: by k, the share of the variance of run lengths that the clusters explain; None for aggregated examples.
      elbow, silhouette: the k that each method suggests; None for no silhouette.
      chosen: the clusters that the tables and plots show.
      plane: float64 [n, 2], the map.
      variance: share of the variance by axis of a ``pca`` map; empty for ``tsne``.
    """

    options: ClusterOptions
    runs: Runs
    of_runs: int
    facts: Mapping[str, np.ndarray]
    tried: tuple[Clusters, ...]
    agreements: Mapping[int, Mapping[str, Agreement | None]]
    lengths: Mapping[int, float | None]
    elbow: int
    silhouette: int | None
    chosen: Clusters
    plane: np.ndarray
    variance: tuple[float, ...]

    def tables(self) -> dict[str, Shares]:
        """Return the shares of clusters × values, by fact."""
        return {name: shares(self.chosen.of, values) for name, values in self.facts.items()}

    def groups(self) -> Groups:
        """Return the clusters as groups of runs."""
        counts = np.bincount(self.chosen.of)
        return Groups(tuple(f"cluster {number}" for number in range(len(counts))), self.chosen.of, counts, len(counts))

    def to_json(self) -> dict[str, Any]:
        """Return everything but the examples."""
        tables = self.tables()
        return {
            "dataset": self.runs.dataset,
            "wanted": asdict(self.options),
            "runs": len(self.runs),
            "of_runs": self.of_runs,
            "values_a_run": int(np.prod(self.runs.inputs.shape[1:])),
            "tried": [self._tried(clusters) for clusters in self.tried],
            "elbow": self.elbow,
            "silhouette": self.silhouette,
            "k": self.chosen.k,
            "clusters": [
                {
                    "cluster": cluster,
                    "runs": int(count),
                    "median_windows": float(np.median(self.runs.n_windows[self.chosen.of == cluster])),
                    "nearest": self.runs.run_id[self.chosen.nearest(cluster, 5)].tolist(),
                    "classes": {name: _shares(table, cluster) for name, table in tables.items()},
                }
                for cluster, count in enumerate(np.bincount(self.chosen.of))
            ],
            "map": {"projection": self.options.projection, "variance": list(self.variance)},
            "assignments": [
                {"run_id": run_id, "cluster": cluster, "distance": distance, "x": x, "y": y}
                for run_id, cluster, distance, (x, y) in zip(
                    self.runs.run_id.tolist(),
                    self.chosen.of.tolist(),
                    self.chosen.distance.tolist(),
                    self.plane.tolist(),
                    strict=True,
                )
            ],
        }

    def _tried(self, clusters: Clusters) -> dict[str, Any]:
        agreements = self.agreements[clusters.k]
        return {
            "k": clusters.k,
            "inertia": clusters.inertia,
            "distortion": clusters.distortion,
            "silhouette": clusters.silhouette,
            "length_explained": self.lengths[clusters.k],
            "agreement": {fact: None if agreed is None else asdict(agreed) for fact, agreed in agreements.items()},
        }


def _shares(table: Shares, cluster: int) -> list[dict[str, Any]]:
    return [
        {"class": name, "runs": int(count), "pclass": float(of_class), "pcluster": float(of_cluster)}
        for name, count, of_class, of_cluster in zip(
            table.names, table.counts[cluster], table.of_class[cluster], table.of_cluster[cluster], strict=True
        )
        if count
    ]


def cluster_dataset(dataset: StoredDataset, options: ClusterOptions, progress: Progress = no_progress) -> Clustering:
    """Cluster the normalised examples of a data set.

    Args:
      dataset: a data set.
      options: the options.
      progress: called with the number of finished steps and the total.

    Raises:
      CimlError: when there is no such data set or class, too few windows, or fewer different runs than clusters.
      IntegrityError: when a file differs from the manifest.
    """
    runs = read_runs(
        dataset,
        splits=options.splits,
        class_name=options.only,
        min_windows=options.first or 1,
        fact_names=_fact_names(options),
        max_values=MAX_VALUES,
        seed=options.seed,
    )
    return cluster_runs(
        _first_windows(_only_sampled(runs), options.first), options, of_runs=len(runs), progress=progress
    )


def cluster_runs(
    runs: Runs,
    options: ClusterOptions,
    of_runs: int | None = None,
    progress: Progress = no_progress,
) -> Clustering:
    """Cluster runs that are in memory; all of them must have arrays."""
    points = unroll(runs, np.arange(len(runs)))
    limit = count_distinct(points)
    if options.k is not None and options.k > limit:
        raise CimlError(f"--k {options.k}: only {limit} of the {len(runs)} runs differ")
    facts = {fact: np.array([value or "none" for value in runs.facts[fact]], object) for fact in _fact_names(options)}
    if not facts:
        facts = {runs.resolved.definition.class_label: runs.class_name}
    ks = sorted({*range(1, min(options.most_k, limit) + 1), *([options.k] if options.k else [])})
    tried = []
    for finished, k in enumerate(ks):
        progress("clusterings", finished, len(ks))
        tried.append(find_clusters(points, k, options.seed))
    progress("clusterings", len(ks), len(ks))
    by_k = {clusters.k: clusters for clusters in tried}
    suggested = best_silhouette(tried)
    plane, variance = project(points, options.projection, options.seed)
    return Clustering(
        options=options,
        runs=runs,
        of_runs=len(runs) if of_runs is None else of_runs,
        facts=facts,
        tried=tuple(tried),
        agreements={
            k: {fact: agreement(clusters.of, values, options.seed) for fact, values in facts.items()}
            for k, clusters in by_k.items()
        },
        lengths={
            k: None if runs.aggregated else explained(clusters.of, runs.n_windows) for k, clusters in by_k.items()
        },
        elbow=elbow([clusters for clusters in tried if clusters.k <= options.most_k]),
        silhouette=suggested,
        chosen=by_k[options.k or suggested or 1],
        plane=plane,
        variance=variance,
    )


def _fact_names(options: ClusterOptions) -> Sequence[str]:
    """Return the names of the facts to compare with; () for the data set's label."""
    return options.against or (("build_name",) if options.only else ())


def _only_sampled(runs: Runs) -> Runs:
    """Return only the runs that have arrays."""
    rows = runs.sampled
    return replace(
        runs,
        **{name: getattr(runs, name)[rows] for name in ("run_id", "build_name", "split", "outcome", "label")},
        n_windows=runs.n_windows[rows],
        day=runs.day[rows],
        facts={name: values[rows] for name, values in runs.facts.items()},
        sampled=np.arange(len(rows)),
    )


def _first_windows(runs: Runs, first: int | None) -> Runs:
    """Return the runs with only their first windows, so that no run has padding; ``n_windows`` is unchanged."""
    if first is None:
        return runs
    if runs.aggregated:
        raise CimlError("--first: this data set has aggregated examples, which have no windows")
    if first > runs.resolved.windows:
        raise CimlError(f"--first {first}: the examples of this data set have {runs.resolved.windows} windows")
    scale = replace(runs.normalisation, mean=runs.normalisation.mean[:first], width=runs.normalisation.width[:first])
    resolved = runs.resolved.replace(windows=first)
    return replace(runs, inputs=runs.inputs[:, :first], normalisation=scale, resolved=resolved)
