"""Clusters of points with known groups, and their figures, computed by hand."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score

from ciml.training.experiments.clustering import (
    Clusters,
    agreement,
    best_silhouette,
    count_distinct,
    elbow,
    explained,
    find_clusters,
    project,
    shares,
)


def blobs() -> tuple[np.ndarray, np.ndarray]:
    """Return shuffled points [60, 5] around distant corners, and the corner of each; corner 0 has the most points."""
    random = np.random.default_rng(7)
    of = random.permutation(np.repeat(np.arange(3), (30, 20, 10)))
    return (10 * np.eye(3, 5)[of] + random.normal(0, 0.1, (60, 5))).astype(np.float32), of


def test_k_means_finds_what_is_there_and_numbers_it_by_size():
    points, of = blobs()
    found = find_clusters(points, 3)
    assert found.of.tolist() == of.tolist()
    means = np.stack([points[of == cluster].mean(axis=0) for cluster in range(3)])
    np.testing.assert_allclose(found.distance, np.linalg.norm(points - means[of], axis=1), rtol=1e-4)
    assert found.inertia == pytest.approx((found.distance**2).sum(), rel=1e-4)
    assert found.distortion == pytest.approx(found.distance.mean())
    assert found.silhouette is not None
    assert 0.95 < found.silhouette < 1
    rows = np.flatnonzero(of == 2)
    assert found.nearest(2, 3).tolist() == rows[np.argsort(found.distance[rows])][:3].tolist()
    noise = np.random.default_rng(1).random((200, 6), np.float32)
    first, again = find_clusters(noise, 5, seed=3), find_clusters(noise, 5, seed=3)
    assert (first.of.tolist(), first.distance.tolist()) == (again.of.tolist(), again.distance.tolist())


def test_elbow_and_silhouette_name_the_number_of_groups_and_the_smallest_among_equals():
    found = [find_clusters(blobs()[0], k) for k in range(1, 7)]
    assert (elbow(found), best_silhouette(found)) == (3, 3)
    assert (found[0].silhouette, best_silhouette(found[:1])) == (None, None)
    one, zero = np.zeros(1, np.int64), np.zeros(1)
    equal = [Clusters(k, one, zero, 0.0, score) for k, score in ((2, 0.5), (3, 0.5), (4, 0.4))]
    assert best_silhouette(equal) == 2


def test_points_that_are_all_alike_are_one_cluster_and_one_feature_makes_a_map_too():
    points = np.ones((6, 4), np.float32)
    assert (count_distinct(points), count_distinct(blobs()[0])) == (1, 60)
    found = find_clusters(points, 1)
    assert (found.of.tolist(), found.distortion, elbow([found])) == ([0] * 6, 0.0, 1)
    plane, variance = project(points)
    assert (plane.tolist(), variance) == ([[0.0, 0.0]] * 6, (0.0, 0.0))
    plane, variance = project(np.array([[1.0], [2.0], [4.0]], np.float32))
    assert np.ptp(plane[:, 0]) == pytest.approx(3)
    assert (plane[:, 1].tolist(), variance) == ([0.0] * 3, (1.0, 0.0))


def test_agreement_is_one_with_the_groups_and_its_expectation_by_chance_is_reported():
    points, of = blobs()
    names = np.array(["c", "a", "b"], object)[of]
    agreed = agreement(find_clusters(points, 3).of, names)
    assert agreed is not None
    assert (agreed.rand, agreed.mutual) == pytest.approx((1.0, 1.0))
    rng = np.random.default_rng(0)
    assignments = [rng.permutation(of) for _ in range(100)]
    for name, score in (("rand", adjusted_rand_score), ("mutual", normalized_mutual_info_score)):
        by_chance = sorted(score(of, assignment) for assignment in assignments)
        assert getattr(agreed, f"random_{name}") == pytest.approx(np.mean(by_chance))
        assert by_chance[94] <= getattr(agreed, f"random_{name}_95") <= by_chance[95]
    assert agreement(of, names, seed=4) == agreement(of, names, seed=4)
    assert agreement(of, np.full(60, "a", object)) is None
    assert agreement(np.zeros(60, np.int64), names) is None


def test_the_silhouette_is_of_at_most_4000_runs(monkeypatch: pytest.MonkeyPatch):
    """It needs all pairs."""
    sizes = []
    monkeypatch.setattr(
        "sklearn.metrics.silhouette_score", lambda points, of: sizes.append((len(points), len(of))) or 0.5
    )
    points = np.random.default_rng(0).random((4001, 2), np.float32)
    for some in (points, points[:4000]):
        find_clusters(some, 2)
    assert sizes == [(4000, 4000)] * 2


def test_shares_are_those_of_the_class_and_of_the_cluster_and_clusters_explain_what_they_sort():
    names = np.array(["rax", "rax", "ovh", "rax", "rax", "ovh"], object)
    table = shares(np.array([0, 0, 0, 0, 1, 1]), names)
    assert (table.names, table.counts.tolist()) == (("rax", "ovh"), [[3, 1], [1, 1]])
    assert table.of_class.tolist() == [[0.75, 0.5], [0.25, 0.5]]
    assert table.of_cluster.tolist() == [[0.75, 0.25], [0.5, 0.5]]
    # of the variance of 1, 3, 5, 7 around 4 (9 + 1 + 1 + 9), the means 2 and 6 are 4 * 4 away
    for lengths, share in (([5, 5, 9, 9], 1), ([5, 9, 5, 9], 0), ([1, 3, 5, 7], 16 / 20), ([3, 3, 3, 3], 0)):
        assert explained(np.array([0, 0, 1, 1]), np.array(lengths)) == pytest.approx(share)


def test_the_map_keeps_groups_apart():
    points, of = blobs()
    plane, variance = project(points)
    assert 0.95 < sum(variance) <= 1
    assert variance[0] > variance[1]
    np.testing.assert_allclose(plane.var(axis=0) / points.astype(np.float64).var(axis=0).sum(), variance, rtol=1e-3)
    learnt, nothing = project(points, "tsne", seed=2)
    assert nothing == ()
    assert learnt.tolist() == project(points, "tsne", seed=2)[0].tolist()
    centres = np.stack([learnt[of == corner].mean(axis=0) for corner in range(3)])
    nearest = np.linalg.norm(learnt[:, None] - centres[None], axis=2).argmin(axis=1)
    assert nearest.tolist() == of.tolist()
