"""Count how often the gate blesses a model of causes. Writes that figure in docs/verdicts.md.

    python -m studies.verdict_gate DATA [--splits 60] [--experiment FILE]

DATA is a data root with the runs of the corpus (`ciml backfill`). It gets a data set and a model for each split, so
take a copy. The data sets are those of `examples/cause.toml` with another salt: other changes are learned, calibrate
and are held out. Each refresh is that of `ciml refresh` for a new model.
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from ciml.data_root import DataRoot
from ciml.datasets.definition import DatasetDefinition
from ciml.pipelines.datasets.update import create_dataset, update_dataset
from ciml.training.experiment import Experiment
from ciml.training.refresh import Candidate, TrainConfig, refresh
from ciml.trust import TrustPolicy
from studies.recordings import EXAMPLES


def refreshes(data: DataRoot, experiment: Experiment, splits: int) -> Iterator[Candidate]:
    """Yield the candidate of each split."""
    trust = TrustPolicy.load(EXAMPLES / "trust.toml")
    for number in range(splits):
        name = f"cause-{number}"
        definition = DatasetDefinition.load(EXAMPLES / "cause.toml", name=name).replace(salt=f"gate {number}")
        create_dataset(data, definition)
        update_dataset(data.dataset(name), seal=True)
        candidate = refresh(TrainConfig(data, name, f"{name}-{experiment.estimator}", experiment, trust))
        assert isinstance(candidate, Candidate)
        yield candidate


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path, metavar="DATA")
    parser.add_argument("--splits", type=int, default=60)
    parser.add_argument("--experiment", type=Path, default=EXAMPLES / "cause-experiment.toml")
    options = parser.parse_args()
    experiment = Experiment.load(options.experiment)
    figures: dict[str, list[float]] = {}
    reasons: Counter[str] = Counter()
    for number, candidate in enumerate(refreshes(DataRoot.open(options.data), experiment, options.splits)):
        evaluation = candidate.metrics["evaluation"]
        verdicts = candidate.metrics["verdicts"]
        for name, figure in (
            ("accuracy", evaluation["accuracy"]),
            ("base rate", evaluation["base_rate"]),
            ("coverage", verdicts["coverage"]),
            ("unknown", verdicts["abstained"]),
        ):
            figures.setdefault(name, []).append(figure["value"])
        reasons["blessed" if candidate.decision.blessed else "rejected"] += 1
        print(number, candidate.decision.blessed, candidate.decision.reasons, flush=True)
    print(dict(reasons))
    print({name: round(float(np.mean(values)), 3) for name, values in figures.items()})


if __name__ == "__main__":
    main()
