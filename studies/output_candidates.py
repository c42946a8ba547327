"""Measure features of outputs that the context ``log`` does not have. Writes figures of docs/decisions.md.

    python -m studies.output_candidates FOLDER… [--hold changes|jobs]

A FOLDER is a recording as in `studies.verdict_outputs`. Each candidate joins the reason that an output names. Its
figures are those of the reason and the candidate less those of the reason alone, on the same folds.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np

from ciml.datasets.definition import LOG_PREFIX
from ciml.events.outcomes import CAUSES, FAILED
from ciml.training.experiment import Experiment
from ciml.transforms.logs.failure_keys import keys_of
from ciml.transforms.logs.features import telling_templates
from ciml.transforms.logs.profile import OutputProfile, differences_of, printed_templates
from ciml.transforms.logs.ranking import ScannedOutput
from ciml.transforms.logs.templates import template_digest
from studies.figures import RESAMPLES
from studies.recordings import EXAMPLES, Recorded
from studies.verdict_outputs import DEV_OF, macro_f1, make_output_profiles, read_with_outputs, with_outputs
from studies.verdicts import NETWORK, Fold, Verdicts, by_experiment, differences, folds_by, verdicts_by

#: Buckets of hashed templates.
BUCKETS = 16
#: Runs that failed so long before are neighbours.
HOURS = 6
CANDIDATES = ("end", "exit", "spread", "hashed", "lines")


def spreads(runs: Recorded, outputs: Mapping[str, ScannedOutput]) -> dict[str, float]:
    """Return by run the number of other changes that failed by one of its keys in the hours before it ended."""
    passed: dict[str, OutputProfile] = defaultdict(OutputProfile)
    failed: dict[str, list[tuple[int, str]]] = defaultdict(list)
    spread = {}
    for facts, change in zip(runs.facts, runs.groups, strict=True):
        output = outputs.get(facts.build_uuid)
        end_us = facts.end_us or 0
        if output is None:
            continue
        printed = printed_templates(output)
        if facts.outcome not in FAILED:
            passed[facts.build_name].add(printed)
            continue
        keys = [key.id for key in keys_of(printed, facts.build_name, passed[facts.build_name])]
        changes = {
            failed_change
            for key in keys
            for time_us, failed_change in failed[key]
            if failed_change != change and 0 < end_us - time_us <= HOURS * 3_600_000_000
        }
        spread[facts.run_id] = float(len(changes))
        for key in keys:
            failed[key].append((end_us, change))
    return spread


def values_of(output: ScannedOutput, profile: OutputProfile, spread: float, exit_status: str) -> dict[str, list[float]]:
    """Return the values of each candidate for a failed run."""
    printed = printed_templates(output)
    usual = profile.usual(0.9)
    missing = differences_of(printed, profile).missing
    new = [name for name in telling_templates(tuple(printed)) if profile.is_new(name)]
    buckets = np.bincount([template_digest(name)[0] % BUCKETS for name in new], minlength=BUCKETS)
    ends_early = bool(missing) and bool(usual) and missing[-1].template == list(usual)[-1]
    status = int(exit_status or 0)
    return {
        "end": [float(ends_early), len(missing) / max(len(usual), 1), missing[0].usual.place if missing else 1.0],
        "exit": [float(status == 0), float(status == 1), float(status > 1), float(status < 0 or status > 128)],
        "spread": [min(spread, 5.0)],
        "hashed": np.minimum(buckets, 3).astype(float).tolist(),
        "lines": [float(np.log1p(sum(profile.is_new(name) for name in printed))), float(len(printed) == 0)],
    }


def with_candidates(
    runs: Recorded, outputs: Mapping[str, ScannedOutput], folds: Iterator[tuple[int, Fold]]
) -> Iterator[tuple[int, Fold]]:
    """Yield folds with the values of all candidates, named ``candidate:NAME:NUMBER``."""
    spread = spreads(runs, outputs)
    for repeat, fold in with_outputs(runs, outputs, folds):
        hidden = set(runs.failed_groups[fold.held])
        visible = [runs.facts[index] for index in range(len(runs.facts)) if runs.groups[index] not in hidden]
        profiles = make_output_profiles((run, outputs[run.build_uuid]) for run in visible)
        rows = [
            values_of(
                outputs[run.build_uuid],
                profiles.of(run.build_name),
                spread[run.run_id],
                run.labels.get("exit_code", ""),
            )
            for run in runs.failed_facts
        ]
        names = [f"candidate:{name}:{number}" for name in CANDIDATES for number in range(len(rows[0][name]))]
        values = np.array([[value for name in CANDIDATES for value in row[name]] for row in rows], np.float32)
        is_window = np.arange(fold.inputs.shape[1])[None, :, None] < fold.n_windows[:, None, None]
        inputs = np.concatenate([fold.inputs, (values[:, None, :] * is_window).astype(np.float32)], axis=2)
        yield repeat, replace(fold, inputs=inputs, features=(*fold.features, *names))


def gain(first: Verdicts, second: Verdicts, labels: np.ndarray, groups: np.ndarray) -> tuple[float, float, float]:
    """Return the macro-F1 of a method less that of another, with its 95 % interval by a bootstrap of groups."""
    names, index = np.unique(groups, return_inverse=True)
    likely = [verdicts.probability.argmax(axis=2) for verdicts in (first, second)]
    value = macro_f1(likely[0], labels, groups)[0] - macro_f1(likely[1], labels, groups)[0]
    random = np.random.default_rng(0)
    gains = []
    for _ in range(RESAMPLES // 4):
        rows = np.concatenate([np.flatnonzero(index == drawn) for drawn in random.integers(0, len(names), len(names))])
        gains.append(_score(likely[0][:, rows], labels[rows]) - _score(likely[1][:, rows], labels[rows]))
    low, high = np.quantile(gains, (0.025, 0.975))
    return value, float(low), float(high)


def _score(likely: np.ndarray, labels: np.ndarray) -> float:
    shares = []
    for label in range(len(CAUSES)):
        hits = 2 * ((likely == label) & (labels == label)).sum()
        named = (likely == label).sum() + len(likely) * (labels == label).sum()
        shares.append(hits / named if named else 0.0)
    return float(np.mean(shares))


def main() -> None:
    """Print a row a candidate and an estimator."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", type=Path, nargs="+", metavar="FOLDER")
    parser.add_argument("--hold", choices=("changes", "jobs"), default="changes", help="what is held out whole")
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    runs, outputs = read_with_outputs(options.folders, options.hold)
    facts, labels, groups = runs.failed_facts, runs.labels, runs.failed_groups
    prepared = list(with_candidates(runs, outputs, folds_by(runs, None, 5, options.repeats, DEV_OF)))
    example = Experiment.load(EXAMPLES / "cause-experiment.toml")
    for estimator, experiment in (("extra trees", example), ("logistic", NETWORK.replace(hidden_layers=()))):
        alone = verdicts_by(by_experiment(experiment, (LOG_PREFIX,)), prepared, labels, facts, example.coverage)
        print(estimator, "reason alone", macro_f1(alone.probability.argmax(axis=2), labels, groups), flush=True)
        for name in CANDIDATES:
            prefixes = (LOG_PREFIX, f"candidate:{name}:")
            verdicts = verdicts_by(by_experiment(experiment, prefixes), prepared, labels, facts, example.coverage)
            score = gain(verdicts, alone, labels, groups)
            unknown = differences(verdicts, alone, labels, groups)["unknown"]
            texts = (f"{value:+.3f} ({low:+.3f} to {high:+.3f})" for value, low, high in (score, unknown))
            print(f"| {estimator}: {name} | {' | '.join(texts)} |", flush=True)


if __name__ == "__main__":
    main()
