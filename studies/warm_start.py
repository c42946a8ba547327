"""Measure whether a network should start from the champion's weights. Writes the table of docs/training.md.

    python -m studies.warm_start train/builds.jsonl --label framework --seeds 2
    python -m studies.warm_start recorded-ci recorded-ci-2 --label status --seeds 3

A folder is a recording, as for `studies.verdicts`. The runs are divided in their order: the first third is trained
on, then refreshes follow, each with a ninth more, and each tested on the runs that come next. The first refresh is cold
in any case, and does not count. The network is the default one. Its first layer is converted to the new normalisation,
so that a warm start begins with the same function of the recorded values.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

import numpy as np

from ciml.datasets.definition import DatasetDefinition, resolve
from ciml.training.estimators import Rows, networks
from ciml.training.estimators.networks import Network, Resident, Trained, fit_network
from ciml.training.experiment import Experiment
from ciml.training.normalise import Normalisation
from ciml.transforms.examples.prepare import prepare_many
from studies.figures import share_with_interval
from studies.recordings import read as read_recordings
from studies.year_runs import read

REFRESHES = 6
NETWORK = Network(networks.dnn, frozenset())
FEW = 30
COLD = "cold, 150 epochs"
COLD_FEW = f"cold, {FEW} epochs"
WARM = f"warm, {FEW} epochs"


@dataclass(frozen=True)
class Fit:
    """A refresh by one method.

    Attributes:
      method: how it began.
      seconds: of CPU, for the training.
      rows: positions of the test runs.
      right: whether each test run was predicted right.
      log_loss: mean over the test runs.
      base: whether each test run is of the most frequent class that was trained on.
    """

    method: str
    seconds: float
    rows: np.ndarray
    right: np.ndarray
    log_loss: float
    base: np.ndarray


def rows_of(paths: Sequence[Path], label: str) -> tuple[Rows, int]:
    """Return the runs of a listing or of recordings, not normalised, and the number of classes."""
    if paths[0].is_dir():
        recordings = read_recordings(paths)
        recorded = list(zip(recordings.facts, recordings.tables, strict=True))
    else:
        recorded = read(paths[0], label)
    definition = DatasetDefinition(
        name="warm",
        sample_interval="1s",
        features_regex="^(usr|1m|1min)$",
        class_label=label,
        max_windows=60,
        count_first_sample=False,
    )
    resolved = resolve(definition, [table.column_names for _, table in recorded], [facts for facts, _ in recorded])
    inputs, n_windows, rejected = prepare_many([table for _, table in recorded], resolved)
    labels = [resolved.label_of(facts) for facts, _ in recorded]
    bad = {row for row, _ in rejected} | {row for row, value in enumerate(labels) if isinstance(value, str)}
    numbers = np.array([-1 if isinstance(value, str) else value[0] for value in labels])
    usable = np.array([row for row in range(len(recorded)) if row not in bad])
    return Rows(inputs, n_windows, numbers).take(usable), len(resolved.classes)


def converted(weights: Sequence[np.ndarray], old: Normalisation, new: Normalisation) -> list[np.ndarray]:
    """Return weights of a dense network for inputs of another normalisation.

    An element that one of the two does not use has no weight.
    """
    used = (old.width > 0) & (new.width > 0)
    divisor = np.where(used, old.width, 1.0)
    scale = np.where(used, new.width / divisor, 0.0).ravel()
    shift = np.where(used, (new.mean - old.mean) / divisor, 0.0).ravel()
    kernel, bias, *further = weights
    return [(kernel * scale[:, np.newaxis]).astype(np.float32), (bias + shift @ kernel).astype(np.float32), *further]


def trained(
    experiment: Experiment, rows: Rows, classes: int, weights: Sequence[np.ndarray] | None
) -> tuple[Trained, float]:
    """Return a network, trained from these weights or from new ones, and the seconds of CPU."""
    batches = Resident(rows, experiment.batch_size, experiment.seed)
    model = NETWORK.new_model(experiment, batches.shape[0], batches.shape[1], classes)
    if weights is not None:
        model.set_weights(weights)
    started = time.process_time()
    return fit_network(experiment, model, batches, None), time.process_time() - started


def refreshes(rows: Rows, classes: int, seed: int) -> list[Fit]:
    """Return the refreshes of a seed by each method; the first one, which is cold for all, is left out."""
    cold = Experiment(seed=seed)
    cuts = [len(rows) // 3 + number * (len(rows) // 9) for number in range(REFRESHES)] + [len(rows)]
    previous: tuple[list[np.ndarray], Normalisation] | None = None
    fits = []
    for start, end in pairwise(cuts):
        train = rows.take(slice(0, start))
        test = rows.take(slice(start, end))
        normalisation = Normalisation.of(train.inputs)
        train, test = (replace(part, inputs=normalisation.apply(part.inputs)) for part in (train, test))
        weights = None if previous is None else converted(*previous, normalisation)
        few = cold.replace(epochs=FEW)
        methods: dict[str, tuple[Experiment, list[np.ndarray] | None]] = {COLD: (cold, None), COLD_FEW: (few, None)}
        methods[WARM] = (cold, None) if weights is None else (few, weights)
        for method, (experiment, beginning) in methods.items():
            network, seconds = trained(experiment, train, classes, beginning)
            shares = network.predict(test.inputs, test.n_windows)
            if method == WARM:
                previous = network.model.get_weights(), normalisation
            if start == cuts[0]:
                continue
            true_shares = np.maximum(shares[np.arange(len(test)), test.labels], 1e-6)
            base = test.labels == np.bincount(train.labels).argmax()
            right = shares.argmax(axis=1) == test.labels
            fits.append(Fit(method, seconds, np.arange(start, end), right, float(-np.log(true_shares).mean()), base))
    return fits


def table(fits: Sequence[Fit]) -> str:
    """Return the table in Markdown, with the differences of each method from the first one."""
    lines = ["| method | accuracy | against the first | log loss | seconds of CPU |", "|---|---|---|---|---|"]

    first = [fit for fit in fits if fit.method == COLD]
    runs = np.concatenate([fit.rows for fit in first])  # the seeds answer the same runs

    def share(values: Sequence[np.ndarray], form: str) -> str:
        joined = np.concatenate(values).astype(float)
        figures = share_with_interval(joined, np.ones(len(joined)), runs)
        return "{} ({} to {})".format(*(format(figure, form) for figure in figures))

    for method in (COLD, COLD_FEW, WARM):
        of_method = [fit for fit in fits if fit.method == method]
        differences = [fit.right.astype(float) - cold.right for fit, cold in zip(of_method, first, strict=True)]
        against = "" if method == COLD else share(differences, "+.3f")
        loss, seconds = np.mean([(fit.log_loss, fit.seconds) for fit in of_method], axis=0).tolist()
        lines.append(
            f"| {method} | {share([fit.right for fit in of_method], '.3f')} | {against} | {loss:.2f} | {seconds:.1f} |"
        )
    base = share([fit.base for fit in first], ".3f")
    return "\n".join(
        [*lines, f"\nbase rate {base}; {sum(len(fit.right) for fit in first):,} answers in {len(first)} refreshes"]
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("paths", type=Path, nargs="+", metavar="PATH", help="a listing, or folders of recordings")
    parser.add_argument("--label", default="framework")
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args()
    rows, classes = rows_of(options.paths, options.label)
    print(table([fit for seed in range(options.seeds) for fit in refreshes(rows, classes, seed)]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
