"""Measure verdicts from telemetry, from outputs, and from both. Writes tables of docs/verdicts.md.

    python -m studies.verdict_outputs FOLDER… [--hold changes|jobs]

A FOLDER is a recording (`studies.recordings`), with ``job-output.txt.gz`` next to each log, or the unpacked sample
runs. Runs without an output are left out. Profiles of telemetry and of outputs, model and calibration are made without
the held-out changes or jobs.
"""

from __future__ import annotations

import argparse
import gzip
import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from ciml.datasets.definition import LOG_FEATURES, LOG_PREFIX
from ciml.events.outcomes import CAUSES
from ciml.events.records import RunFacts
from ciml.training.experiment import Experiment
from ciml.transforms.logs.features import output_features
from ciml.transforms.logs.profile import MIN_RUNS, OutputProfile, printed_templates
from ciml.transforms.logs.ranking import ScannedOutput, scan
from studies.figures import RESAMPLES, table
from studies.recordings import EXAMPLES, Recorded, read
from studies.verdicts import (
    BASELINES,
    NETWORK,
    Answer,
    Fold,
    Verdicts,
    by_base_rate,
    by_duration,
    by_experiment,
    by_outcome,
    figures,
    folds_by,
    verdicts_by,
)

OUTPUT = "job-output.txt.gz"
TELEMETRY = ("usr", "stl", "profile:")
#: Half of the changes that are not held out calibrate, as in the example.
DEV_OF = 2


def read_with_outputs(folders: Sequence[Path], hold: str) -> tuple[Recorded, dict[str, ScannedOutput]]:
    """Read the runs that have an output, and the outputs. What is held out whole is ``changes``, or ``jobs``."""
    outputs = read_outputs(folders)
    runs = read(folders)
    runs = runs.of([index for index, facts in enumerate(runs.facts) if facts.build_uuid in outputs])
    if hold == "jobs":
        runs = replace(runs, groups=np.array([facts.build_name for facts in runs.facts]))
    return runs, outputs


def read_outputs(folders: Iterable[Path]) -> dict[str, ScannedOutput]:
    """Read the outputs of recordings, by the id of the build."""
    outputs = {}
    for folder in folders:
        for line in (folder / "builds.jsonl").read_text().splitlines():
            build = json.loads(line)
            named = build.get("output_path")
            path = folder / named if named else (folder / build["log_path"]).with_name(OUTPUT)
            if path.exists():
                outputs[str(build["build_uuid"])] = scan(gzip.decompress(path.read_bytes()))
    return outputs


@dataclass
class OutputProfiles:
    """What passing runs print.

    Attributes:
      jobs: by job.
      pooled: of the runs of all jobs.
    """

    jobs: dict[str, OutputProfile]
    pooled: OutputProfile

    def of(self, job: str) -> OutputProfile:
        """Return the profile of a job; the pooled one where fewer than `MIN_RUNS` of its runs passed."""
        profile = self.jobs.get(job)
        return profile if profile is not None and profile.runs >= MIN_RUNS else self.pooled


def make_output_profiles(runs: Iterable[tuple[RunFacts, ScannedOutput]]) -> OutputProfiles:
    """Make the profiles of outputs; runs that did not pass are ignored."""
    profiles = OutputProfiles({}, OutputProfile())
    for facts, output in runs:
        if facts.outcome == "success":
            printed = printed_templates(output)
            profiles.jobs.setdefault(facts.build_name, OutputProfile()).add(printed)
            profiles.pooled.add(printed)
    return profiles


def with_outputs(
    runs: Recorded, outputs: Mapping[str, ScannedOutput], folds: Iterable[tuple[int, Fold]]
) -> Iterator[tuple[int, Fold]]:
    """Yield folds with the features of outputs appended, by what each fold may see. Runs need no output."""
    for repeat, fold in folds:
        hidden = set(runs.failed_groups[fold.held])
        visible = [runs.facts[index] for index in range(len(runs.facts)) if runs.groups[index] not in hidden]
        profiles = make_output_profiles(
            (facts, outputs[facts.build_uuid]) for facts in visible if facts.build_uuid in outputs
        )
        rows = [output_features(outputs.get(run.build_uuid), profiles.of(run.build_name)) for run in runs.failed_facts]
        window = np.arange(fold.inputs.shape[1])
        is_window = window[None, :, None] < fold.n_windows[:, None, None]
        added = (np.array(rows, np.float32)[:, None, :] * is_window).astype(np.float32)
        inputs = np.concatenate([fold.inputs, added], axis=2)
        yield repeat, replace(fold, inputs=inputs, features=(*fold.features, *LOG_FEATURES))


def methods(runs: Recorded, experiment: Experiment) -> dict[str, Answer]:
    """Return the compared methods by name."""
    logistic = NETWORK.replace(hidden_layers=())
    return {
        "base rate": by_base_rate,
        "duration": by_duration(runs),
        "exit status and timeout": by_outcome,
        "telemetry": by_experiment(experiment, TELEMETRY),
        "telemetry and outcome": by_experiment(experiment, (*TELEMETRY, "outcome:")),
        "output": by_experiment(experiment, (LOG_PREFIX,)),
        "output and outcome": by_experiment(experiment, (LOG_PREFIX, "outcome:")),
        "output and telemetry": by_experiment(experiment, (LOG_PREFIX, *TELEMETRY)),
        "output, telemetry and outcome": by_experiment(experiment),
        "output, logistic regression": by_experiment(logistic, (LOG_PREFIX,)),
        "all, logistic regression": by_experiment(logistic),
        "all, network of 16": by_experiment(NETWORK),
    }


def macro_f1(likely: np.ndarray, labels: np.ndarray, groups: np.ndarray) -> tuple[float, float, float]:
    """Return macro-F1 with its 95 % interval, a bootstrap of groups as in `studies.verdicts.figures`.

    Args:
      likely: int [repeats, n], the most probable class.
      labels: int [n].
      groups: [n].
    """
    names, index = np.unique(groups, return_inverse=True)
    drawn = np.random.default_rng(0).multinomial(len(names), np.full(len(names), 1 / len(names)), size=RESAMPLES)
    weights = np.concatenate([np.ones((1, len(names))), drawn])
    scores = np.zeros(len(weights))
    for label in range(len(CAUSES)):
        hits = ((likely == label) & (labels == label)).sum(axis=0)
        named = (likely == label).sum(axis=0) + len(likely) * (labels == label)
        top, bottom = (weights @ np.bincount(index, counts, len(names)) for counts in (2 * hits, named))
        scores += np.divide(top, bottom, out=np.zeros(len(weights)), where=bottom > 0) / len(CAUSES)
    low, high = np.quantile(scores[1:], (0.025, 0.975))
    return float(scores[0]), float(low), float(high)


def compare(
    runs: Recorded, outputs: Mapping[str, ScannedOutput], folds: int, repeats: int, only: str = ""
) -> dict[str, dict[str, tuple[float, float, float]]]:
    """Return the figures of each method; whole groups are held out."""
    experiment = Experiment.load(EXAMPLES / "cause-experiment.toml")
    labels, facts = runs.labels, runs.failed_facts
    prepared = list(with_outputs(runs, outputs, folds_by(runs, None, folds, repeats, DEV_OF)))
    by_method = {}
    for name, answer in methods(runs, experiment).items():
        if re.search(only, name):
            verdicts = verdicts_by(answer, prepared, labels, facts, experiment.coverage, outside=name not in BASELINES)
            by_method[name] = figures_of(verdicts, labels, runs.failed_groups)
            print(name, {key: round(value[0], 3) for key, value in by_method[name].items()}, flush=True)
            print("  wrong:", _wrong(verdicts, labels, facts))
    return by_method


def figures_of(verdicts: Verdicts, labels: np.ndarray, groups: np.ndarray) -> dict[str, tuple[float, float, float]]:
    """Return the figures of `studies.verdicts.figures`, and ``macro-F1``."""
    likely = verdicts.probability.argmax(axis=2)
    return {"macro-F1": macro_f1(likely, labels, groups), **figures(verdicts, labels, groups)}


def _wrong(verdicts: Verdicts, labels: np.ndarray, facts: Sequence[RunFacts]) -> str:
    wrong = (verdicts.probability.argmax(axis=2) != labels).sum(axis=0)
    return ", ".join(
        f"{facts[row].build_name} {facts[row].build_uuid[:8]} {wrong[row]}" for row in np.flatnonzero(wrong).tolist()
    )


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", type=Path, nargs="+", metavar="FOLDER")
    parser.add_argument("--hold", choices=("changes", "jobs"), default="changes", help="what is held out whole")
    parser.add_argument("--folds", type=int, default=5)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--only", default="", help="a regular expression over the names of methods")
    options = parser.parse_args()
    runs, outputs = read_with_outputs(options.folders, options.hold)
    causes = Counter(runs.truth(facts.run_id) for facts in runs.failed_facts)
    print(f"{len(runs.facts)} runs; {len(runs.failed)} failed with a cause, {dict(causes)}")
    rows = compare(runs, outputs, options.folds, options.repeats, options.only)
    of_causes = [f"{name} {term}" for name in CAUSES for term in ("precision", "recall")]
    print(table(rows, ["macro-F1", *of_causes, "brier"]))
    print(table(rows, [*(f"sure {name}" for name in of_causes), "unknown", "outside", "coverage"]))


if __name__ == "__main__":
    main()
