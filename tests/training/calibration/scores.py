"""Made-up runs whose true probabilities are known, and probabilities of a model that misstates them."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def softmax(logits: NDArray[np.float64]) -> NDArray[np.float64]:
    shares = np.exp(logits - logits.max(axis=1, keepdims=True))
    return shares / shares.sum(axis=1, keepdims=True)


def made_up(
    runs: int, temperature: float = 1.0, *, classes: int = 2, seed: int = 0, bias: float = 0.0
) -> tuple[NDArray[np.float32], NDArray[np.int64], NDArray[np.float64]]:
    """Return what a model says float32 [n, C], the labels int64 [n], and the true probabilities float64 [n, C].

    The model's logits are ``temperature`` times the true ones, so it is overconfident above 1.
    """
    random = np.random.default_rng(seed)
    logits = random.normal(0.0, 1.5, (runs, classes))
    logits[:, 0] += bias
    true = softmax(logits)
    labels = (random.random((runs, 1)) > true.cumsum(axis=1)).sum(axis=1)
    return softmax(logits * temperature).astype(np.float32), labels, true


def expected_error(given: NDArray[np.floating], labels: NDArray[np.int64], bins: int = 10) -> float:
    """Return the expected calibration error of the probability of class 1, over bins of equal numbers of runs."""
    parts = np.array_split(np.argsort(given[:, 1], kind="stable"), bins)
    gaps = [abs(given[part, 1].mean(dtype=np.float64) - (labels[part] == 1).mean()) * len(part) for part in parts]
    return float(sum(gaps) / len(labels))
