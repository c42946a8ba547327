"""Poison a model with flipped labels, and measure what is left of its accuracy. Writes the table in docs/trust.md.

    python -m studies.poisoning FOLDER… --results FILE [--seeds 5] [--share 0.2]

A FOLDER is a recording (`studies.recordings`). One author flips the labels of all of its runs: failed runs become
passed, and passed runs failed. The other runs are of 20 authors. The model is that of examples/status.toml. Each seed
holds out other changes, and chooses other changes of the author. A model without flipped labels is the champion, and
`ciml refresh` trains the next one. Its test runs are flipped where they are of the author, as they would be; the
accuracy in the table is that on the true labels.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from ciml.data_root import DataRoot
from ciml.datasets.definition import DatasetDefinition
from ciml.events.records import RunFacts
from ciml.pipelines.datasets.update import create_dataset, update_dataset
from ciml.training.data.examples import read_snapshot_examples
from ciml.training.evaluation.candidate import Champion
from ciml.training.experiment import Experiment
from ciml.training.export import load_exported
from ciml.training.refresh import Candidate, TrainConfig, refresh
from ciml.trust import TrustPolicy
from studies.figures import share_with_interval
from studies.recordings import EXAMPLES, Recorded, read
from tests.runs.scenes import RawStore

AUTHORS = 20
POISONER = "mallory"
TRUSTED = "zuul"
UNTRUSTED = "elsewhere"
RULES = f'[[rule]]\nname = "{TRUSTED}"\ntrusted = true\nsource = "{TRUSTED}"\n'
#: The policies by name.
POLICIES = {
    "none": RULES,
    "author = 0.33": f"[caps]\nauthor = 0.33\n{RULES}",
    "author = 0.1": f"[caps]\nauthor = 0.1\n{RULES}",
    "quarantine": f"quarantine = true\n{RULES}",
}


@dataclass(frozen=True)
class Trial:
    """The result of one refresh.

    Attributes:
      seed: of the split, the author's changes and the model.
      source: of the flipped runs; "" without any.
      share: of flipped labels.
      policy: its name in `POLICIES`.
      right: whether each clean held-out run was predicted right.
      base: whether each is of the most frequent class of the training runs.
      groups: the change of each.
      number: accuracy of the duration alone on the held-out runs of this snapshot.
      flipped: number of flipped training runs in the snapshot.
      learned: number of training runs in the snapshot.
      pushed: whether the gate accepts the candidate in place of the champion.
    """

    seed: int
    source: str
    share: float
    policy: str
    right: list[bool]
    base: list[bool]
    groups: list[str]
    number: float
    flipped: int
    learned: int
    pushed: bool


def poisoned_runs(runs: Recorded, share: float, seed: int) -> set[int]:
    """Return the indices of the poisoner's runs: those of random changes, until they are a share of all."""
    order = np.random.default_rng(seed).permutation(np.unique(runs.groups))
    chosen: set[int] = set()
    for group in order:
        if len(chosen) >= share * len(runs.facts):
            break
        chosen |= set(np.flatnonzero(runs.groups == group).tolist())
    return chosen


def facts_of(runs: Recorded, poisoned: set[int], source: str, seed: int) -> list[RunFacts]:
    """Return the facts of all runs: those of the poisoner have its source, and the other outcome."""
    owners = np.random.default_rng(seed + 1000).integers(AUTHORS, size=len(runs.facts))
    facts = []
    for index, run in enumerate(runs.facts):
        if index not in poisoned:
            facts.append(run.replace(source=TRUSTED, owner=f"author-{owners[index]}"))
            continue
        outcome = "failure" if run.outcome == "success" else "success"
        facts.append(run.replace(source=source, owner=POISONER, outcome=outcome, result=outcome.upper()))
    return facts


def stored(folder: Path, runs: Recorded, facts: list[RunFacts], seed: int) -> DataRoot:
    """Store runs, and build the data set ``status`` of a seed."""
    data = DataRoot.open(folder)
    RawStore(data).add(list(zip(facts, runs.tables, strict=True)))
    definition = DatasetDefinition.load(EXAMPLES / "status.toml", name="status").replace(salt=f"poisoning {seed}")
    create_dataset(data, definition)
    update_dataset(data.dataset("status"), seal=True)
    return data


def trained(data: DataRoot, model: str, policy: str, seed: int, champion: Champion | None) -> Candidate:
    experiment = Experiment.load(EXAMPLES / "status-experiment.toml").replace(seed=seed)
    candidate = refresh(TrainConfig(data, "status", model, experiment, TrustPolicy.parse(policy)), champion=champion)
    assert isinstance(candidate, Candidate)
    return candidate


def trials(runs: Recorded, shares: list[float], policies: list[str], seed: int, folder: Path) -> Iterator[Trial]:
    """Yield the trials of a seed; the first is that of the champion, without flipped labels."""
    change_of = {run.run_id: str(group) for run, group in zip(runs.facts, runs.groups, strict=True)}
    clean = stored(folder / "clean", runs, facts_of(runs, set(), TRUSTED, seed), seed)
    first = trained(clean, "champion", RULES, seed, None)
    champion = Champion(first.folder, 1)
    held_out, test = read_snapshot_examples(clean.dataset("status").store, first.snapshot, "test")
    groups = [change_of[run.run_id] for run in held_out]
    labels = [run.label for run in first.snapshot.runs("train", "dev")]
    base = (test.labels == np.bincount(labels).argmax()).tolist()

    def trial(candidate: Candidate, source: str, share: float, policy: str, poisoned: set[str]) -> Trial:
        answers = load_exported(candidate.folder).predict(test.inputs, test.n_windows)
        right = (answers.argmax(axis=1) == test.labels).tolist()
        learned = [run.run_id for run in candidate.snapshot.runs("train", "dev")]
        flipped = sum(run_id in poisoned for run_id in learned)
        number = candidate.metrics["baselines"]["duration"]["value"]
        pushed = candidate.decision.blessed
        return Trial(seed, source, share, policy, right, base, groups, number, flipped, len(learned), pushed)

    yield trial(first, "", 0.0, "none", set())
    for share in shares:
        poisoned = poisoned_runs(runs, share, seed)
        ids = {runs.facts[index].run_id for index in poisoned}
        for source in (TRUSTED, UNTRUSTED):
            data = stored(folder / f"{source}-{share}", runs, facts_of(runs, poisoned, source, seed), seed)
            for index, policy in enumerate(policies if source == TRUSTED else ["none"]):
                candidate = trained(data, f"model-{index}", POLICIES[policy], seed, champion)
                yield trial(candidate, source, share, policy, ids)


def interval(values: list[bool], groups: list[str]) -> str:
    """Return the share of true values, with its interval by a bootstrap of changes."""
    value, low, high = share_with_interval(np.array(values, float), np.ones(len(values)), np.array(groups))
    return f"{value:.3f} ({low:.2f}–{high:.2f})"


def table(results: list[Trial]) -> str:
    """Return the table of trials in Markdown, and a line of baselines."""
    lines = [
        "| flipped labels | source | policy | flipped training runs | accuracy | gate accepts | largest loss then |",
        "|---|---|---|---|---|---|---|",
    ]
    by_key: dict[tuple[float, str, str], list[Trial]] = {}
    for trial in results:
        by_key.setdefault((trial.share, trial.source, trial.policy), []).append(trial)
    accuracies = {trial.seed: float(np.mean(trial.right)) for trial in by_key[0.0, "", "none"]}
    for (share, source, policy), group in by_key.items():
        right = [value for trial in group for value in trial.right]
        accuracy = interval(right, [name for trial in group for name in trial.groups])
        flipped, learned = (np.mean([(trial.flipped, trial.learned) for trial in group], axis=0)).tolist()
        losses = [accuracies[trial.seed] - float(np.mean(trial.right)) for trial in group if trial.pushed]
        pushed = f"{len(losses)} of {len(group)} | " + (f"{max(losses):.3f}" if losses else "–")
        cells = (f"{share:.0%}", source or "–", policy, f"{flipped:.1f} of {learned:.1f}", accuracy, pushed)
        lines.append(f"| {' | '.join(cells)} |")
    champions = by_key[0.0, "", "none"]
    base = [value for trial in champions for value in trial.base]
    rate = interval(base, [name for trial in champions for name in trial.groups])
    number = np.mean([trial.number for trial in champions])
    lines.append(
        f"\nbase rate {rate}; duration alone {number:.3f}; {len(base)} held-out runs in {len(champions)} splits"
    )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folders", type=Path, nargs="+", metavar="FOLDER")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--share", type=float, action="append", dest="shares")
    parser.add_argument("--policy", choices=list(POLICIES), action="append", dest="policies")
    parser.add_argument("--results", type=Path, required=True, help="JSON lines, to which trials are appended")
    options = parser.parse_args()
    runs = read(options.folders)
    finished = _read(options.results)
    for seed in range(options.seeds):
        if any(trial.seed == seed for trial in finished):
            continue
        with tempfile.TemporaryDirectory() as folder, options.results.open("a") as file:
            shares = options.shares or [0.01, 0.05, 0.2]
            policies = options.policies or list(POLICIES)
            for trial in trials(runs, shares, policies, seed, Path(folder)):
                file.write(json.dumps(asdict(trial)) + "\n")
                file.flush()
    print(table(_read(options.results)))


def _read(path: Path) -> list[Trial]:
    return [Trial(**json.loads(line)) for line in path.read_text().splitlines()] if path.exists() else []


if __name__ == "__main__":
    main()
