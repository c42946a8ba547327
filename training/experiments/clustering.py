"""Clusters of runs: k-means over normalised examples, and the agreement of the clusters with known facts.

Everything runs in one thread, so that the same seed gives the same result, bit for bit.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

#: Most runs of which the silhouette is computed: it needs all pairs.
MOST_SILHOUETTE = 4000
#: Number of random assignments to compare an agreement with.
TRIALS = 100

Projection = Literal["pca", "tsne"]


@dataclass(frozen=True)
class Clusters:
    """Runs in k clusters.

    Attributes:
      k: number of clusters.
      of: int64 [n], the cluster of each run; 0 is the largest.
      distance: float64 [n], Euclidean, to the centre of its cluster.
      inertia: the sum of the squared distances, which k-means minimises.
      silhouette: mean over runs, from -1 to 1; high if runs are nearer to their own cluster than to the next one. None
        for one cluster.
    """

    k: int
    of: np.ndarray
    distance: np.ndarray
    inertia: float
    silhouette: float | None

    @property
    def distortion(self) -> float:
        """Mean distance to the centre."""
        return float(self.distance.mean())

    def nearest(self, cluster: int, count: int) -> np.ndarray:
        """Return int64 [at most count]: the runs nearest to a cluster's centre, nearest first."""
        rows = np.flatnonzero(self.of == cluster)
        return rows[np.argsort(self.distance[rows], kind="stable")][:count]


def find_clusters(points: np.ndarray, k: int, seed: int = 0) -> Clusters:
    """Run k-means: the best of ten starts.

    Args:
      points: float32 [n, D], normalised and unrolled examples.
      k: at least 1, at most the number of distinct points (`count_distinct`).
      seed: of the starts and of the silhouette's sample.
    """
    from sklearn.cluster import KMeans
    from threadpoolctl import threadpool_limits

    with threadpool_limits(1), warnings.catch_warnings():
        # Nearly equal points give fewer clusters than k, which are valid.
        warnings.filterwarnings("ignore", message="Number of distinct clusters")
        fitted = KMeans(k, n_init=10, random_state=seed).fit(points)
        assigned = _numbered_by_size(fitted.labels_)
        distance = np.linalg.norm(points - fitted.cluster_centers_[fitted.labels_], axis=1).astype(np.float64)
        silhouette = _silhouette(points, assigned, seed)
    return Clusters(k, assigned, distance, float(fitted.inertia_), silhouette)


def _numbered_by_size(labels: np.ndarray) -> np.ndarray:
    """Renumber clusters int [n]: 0 is the largest."""
    _, inverse, counts = np.unique(labels, return_inverse=True, return_counts=True)
    rank = np.empty(len(counts), np.int64)
    rank[np.argsort(-counts, kind="stable")] = np.arange(len(counts))
    assigned: np.ndarray = rank[inverse]
    return assigned


def _silhouette(points: np.ndarray, of: np.ndarray, seed: int) -> float | None:
    from sklearn.metrics import silhouette_score

    if len(points) > MOST_SILHOUETTE:
        rows = np.random.default_rng(seed).choice(len(points), MOST_SILHOUETTE, replace=False)
        points = points[rows]
        of = of[rows]
    clusters = len(np.unique(of))
    return float(silhouette_score(points, of)) if 1 < clusters < len(points) else None


def count_distinct(points: np.ndarray) -> int:
    """Return the number of distinct points, an upper bound of k."""
    return len({row.tobytes() for row in np.ascontiguousarray(points)})


def elbow(tried: Sequence[Clusters]) -> int:
    """Return the k at which the distortion is furthest below the line from the first k to the last."""
    ks = np.array([clusters.k for clusters in tried], np.float64)
    values = np.array([clusters.distortion for clusters in tried])
    if len(tried) < 3 or values[0] == values[-1]:
        return tried[0].k
    chord = values[0] + (values[-1] - values[0]) * (ks - ks[0]) / (ks[-1] - ks[0])
    return tried[int(np.argmax(chord - values))].k


def best_silhouette(tried: Iterable[Clusters]) -> int | None:
    """Return the k of the largest silhouette, the smallest of equals; None without silhouettes."""
    scored = [(-clusters.silhouette, clusters.k) for clusters in tried if clusters.silhouette is not None]
    return min(scored)[1] if scored else None


@dataclass(frozen=True)
class Agreement:
    """Agreement of clusters with known names, next to that of random assignments to clusters of the same sizes.

    Attributes:
      rand: adjusted Rand index; 1 for the same partition, about 0 by chance.
      mutual: normalised mutual information, 0 to 1; more clusters raise it even by chance.
      random_rand, random_mutual: the means over the random assignments.
      random_rand_95, random_mutual_95: 95 % of the random assignments are at or below.
    """

    rand: float
    mutual: float
    random_rand: float
    random_rand_95: float
    random_mutual: float
    random_mutual_95: float


def agreement(of: np.ndarray, names: np.ndarray, seed: int = 0) -> Agreement | None:
    """Compute the agreement of clusters [n] with names [n]; None for a single name or cluster."""
    from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score

    _, classes = np.unique(names, return_inverse=True)
    if classes.max(initial=0) == 0 or len(np.unique(of)) == 1:
        return None
    random = np.random.default_rng(seed)
    assignments = [random.permutation(of) for _ in range(TRIALS)]
    figures: dict[str, float] = {}
    for name, score in (("rand", adjusted_rand_score), ("mutual", normalized_mutual_info_score)):
        random_scores = [score(classes, assignment) for assignment in assignments]
        figures[name] = float(score(classes, of))
        figures[f"random_{name}"] = float(np.mean(random_scores))
        figures[f"random_{name}_95"] = float(np.quantile(random_scores, 0.95))
    return Agreement(**figures)


@dataclass(frozen=True)
class Shares:
    """The runs of each class in each cluster.

    Attributes:
      names: of the classes, most frequent first.
      counts: int64 [k, classes], number of runs.
    """

    names: tuple[str, ...]
    counts: np.ndarray

    @property
    def of_class(self) -> np.ndarray:
        """float64 [k, classes], ``pclass``: the share of a class in a cluster; columns sum to 1."""
        share: np.ndarray = self.counts / self.counts.sum(axis=0, keepdims=True)
        return share

    @property
    def of_cluster(self) -> np.ndarray:
        """float64 [k, classes], ``pcluster``: the share of a class within a cluster; rows sum to 1."""
        share: np.ndarray = self.counts / self.counts.sum(axis=1, keepdims=True)
        return share


def shares(of: np.ndarray, names: np.ndarray) -> Shares:
    """Count runs by cluster [n] and name [n]. Equally frequent names are sorted."""
    classes, inverse, totals = np.unique(names, return_inverse=True, return_counts=True)
    order = np.argsort(-totals, kind="stable")
    counts = np.zeros((int(of.max()) + 1, len(classes)), np.int64)
    np.add.at(counts, (of, inverse), 1)
    return Shares(tuple(str(classes[index]) for index in order), counts[:, order])


def explained(of: np.ndarray, values: np.ndarray) -> float:
    """Return the share of the variance of numbers [n], such as durations, that clusters [n] explain; 0 without any."""
    numbers = values.astype(np.float64)
    total = float(((numbers - numbers.mean()) ** 2).sum())
    counts = np.bincount(of)
    means = np.bincount(of, weights=numbers) / np.maximum(counts, 1)
    between = float((counts * (means - numbers.mean()) ** 2).sum())
    return between / total if total else 0.0


def project(points: np.ndarray, how: Projection = "pca", seed: int = 0) -> tuple[np.ndarray, tuple[float, ...]]:
    """Project points [n, D] to float64 [n, 2]; for ``pca`` also return each axis' share of the variance.

    ``tsne`` starts from the first two principal components and uses the first fifty.
    """
    from sklearn.decomposition import PCA
    from sklearn.manifold import TSNE
    from threadpoolctl import threadpool_limits

    dimensions = min(*points.shape, 50)
    with threadpool_limits(1):
        fitted = PCA(dimensions, random_state=seed)
        with np.errstate(invalid="ignore", divide="ignore"):  # all points are equal
            components = fitted.fit_transform(points).astype(np.float64)
        ratio = tuple(float(share) for share in np.nan_to_num(fitted.explained_variance_ratio_[:2]))
        if how == "tsne" and len(points) > 3:
            embedding = TSNE(2, init="pca", perplexity=min(30.0, (len(points) - 1) / 3), random_state=seed)
            return embedding.fit_transform(components).astype(np.float64), ()
    plane = np.zeros((len(points), 2))
    plane[:, : min(dimensions, 2)] = components[:, :2]
    return plane, (*ratio, 0.0)[:2]
