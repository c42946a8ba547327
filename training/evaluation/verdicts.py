"""Figures of verdicts on held-out runs: coverage, abstentions, and how often a verdict is right."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import repeat
from typing import Any

import numpy as np

from ciml.training.evaluation.metrics import accuracy
from ciml.verdicts import UNKNOWN, VerdictRules, make_verdict


def verdict_figures(
    rules: VerdictRules,
    probabilities: np.ndarray,
    labels: np.ndarray,
    jobs: Sequence[str],
    means: np.ndarray | None = None,
) -> dict[str, Any]:
    """Compute the figures of the verdicts on runs that neither the model nor its calibration has seen.

    Args:
      rules: those of the model.
      probabilities: float64 [n, C], calibrated, as predictions record them
        (`ciml.training.calibration.conformal.decimals`).
      labels: int [n].
      jobs: of each run.
      means: float64 [n, F], by `ciml.transforms.examples.prepare.run_means`; None takes all runs for ones like the
        learned.

    Returns:
      JSON; shares have ``value``, ``low`` and ``high`` (95 %, Wilson), or None for no runs:

      - ``runs``;
      - ``coverage``: the share of runs whose class is in their set, with the ``stated`` one, also ``by_class``;
      - ``abstained``: the share of runs with the verdict unknown;
      - ``outside``: the share of runs unlike those that the model learned, whose verdict is unknown for that reason;
      - ``set_sizes``: number of runs by the size of their set;
      - ``causes``: by class the number of ``verdicts``, their ``precision`` and ``recall``; an unknown is no verdict.
    """
    known_means = repeat(None, len(labels)) if means is None else means
    verdicts = [
        make_verdict(job, dict(zip(rules.classes, shares, strict=True)), rules, known)
        for job, shares, known in zip(jobs, probabilities.tolist(), known_means, strict=True)
    ]
    names = np.array([rules.classes[label] for label in labels], object)
    causes = np.array([verdict.cause for verdict in verdicts], object)
    covered = np.array([name in verdict.set for name, verdict in zip(names, verdicts, strict=True)], bool)
    sizes = [len(verdict.set) for verdict in verdicts]
    by_class = {name: _share(covered[names == name]) for name in rules.classes}
    return {
        "runs": len(labels),
        "coverage": {"stated": rules.coverage, **_share(covered), "by_class": by_class},
        "abstained": _share(causes == UNKNOWN),
        "outside": _share(np.array([verdict.outside is not None for verdict in verdicts], bool)),
        "set_sizes": {str(size): sizes.count(size) for size in range(len(rules.classes) + 1)},
        "causes": {
            name: {
                "verdicts": int((causes == name).sum()),
                "runs": int((names == name).sum()),
                "precision": _share(names[causes == name] == name),
                "recall": _share(causes[names == name] == name),
            }
            for name in rules.classes
        },
    }


def _share(given: np.ndarray) -> dict[str, float | None]:
    return accuracy(given.astype(bool))
