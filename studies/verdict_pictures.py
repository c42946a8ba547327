"""Make verdicts on recorded runs for a person to judge. Writes the table of judged verdicts in docs/verdicts.md.

    python -m studies.verdict_pictures FOLDER… --out FOLDER

Twenty failed runs, at equal distances in the order in which they ended, get a verdict, its evidence and its picture.
Model, calibration and profiles are made without the run's change, as in `studies.verdicts`. It prints the table that a
person completes, and how many passing runs have evidence of a problem.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ciml.events.outcomes import CAUSES
from ciml.training.experiment import Experiment
from ciml.transforms.profiles import MIN_RUNS, make_profiles
from ciml.verdict_rules import UNKNOWN
from ciml.verdicts.evidence import Evidence, evidence_of_subject
from ciml.verdicts.evidence.observe import Subject
from studies.recordings import EXAMPLES, Recorded, read
from studies.verdicts import by_experiment, folds_by, verdicts_by

RUNS = 20


def evidence_without(runs: Recorded, at: int) -> tuple[Evidence, str]:
    """Return the evidence and the picture of a run, compared with the passing runs of other changes."""
    job = runs.facts[at].build_name
    other_indices = [index for index in range(len(runs.facts)) if runs.groups[index] != runs.groups[at]]
    same_job = [index for index in other_indices if runs.facts[index].build_name == job]
    profiles = make_profiles((runs.facts[index], runs.tables[index]) for index in same_job)
    if profiles.pooled.runs < MIN_RUNS:
        profiles = make_profiles((runs.facts[index], runs.tables[index]) for index in other_indices)
    return evidence_of_subject(Subject.of(runs.facts[at], runs.tables[at], profiles.of(job)))


def verdicts(runs: Recorded) -> Iterator[tuple[int, str]]:
    """Yield (run, cause with probability) of the failed runs, each by a model without its change."""
    experiment = Experiment.load(EXAMPLES / "cause-experiment.toml")
    folds = list(folds_by(runs, None, folds=5, repeats=1))
    answers = verdicts_by(by_experiment(experiment), folds, runs.labels, runs.failed_facts, experiment.coverage)
    for row, index in enumerate(runs.failed):
        verdict = answers.said[0, row]
        likely = int(answers.probability[0, row].argmax())
        share = f"{CAUSES[likely]} {answers.probability[0, row, likely]:.0%}"
        yield index, f"{UNKNOWN}, {share}" if verdict == len(CAUSES) else share


def known_of(folders: Sequence[Path]) -> Mapping[str, Mapping[str, Any]]:
    """Return the lines of recordings by native id: what truly happened to each run."""
    lines = (json.loads(line) for folder in folders for line in (folder / "builds.jsonl").read_text().splitlines())
    return {line["build_uuid"]: line for line in lines}


def what_happened(line: Mapping[str, Any]) -> str:
    """Return the recorded causes of a run's failure, in words."""
    if "fault" in line:
        return str(line["fault"])
    start = f" from {line['trouble_s']:.0f} s" if line.get("trouble_s") is not None else ""
    trouble = "" if line["trouble"] == "none" else f"{line['trouble']}{start}"
    return " and ".join(filter(None, ["patch" if line["patch"] else "", trouble])) or "nothing"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folders", type=Path, nargs="+", metavar="FOLDER")
    parser.add_argument("--out", type=Path, required=True, help="folder of the pictures")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    runs = read(options.folders)
    lines = known_of(options.folders)
    pictured = list(verdicts(runs))
    print("| run | job | known | verdict | evidence | judged |\n|---|---|---|---|---|---|")
    for number in range(RUNS):
        index, cause = pictured[number * len(pictured) // RUNS]
        facts = runs.facts[index]
        evidence, picture = evidence_without(runs, index)
        (options.out / f"{facts.build_uuid[:8]}.svg").write_text(picture)
        truth = what_happened(lines[facts.build_uuid])
        sentences = " ".join(evidence.observations)
        print(f"| {facts.build_uuid[:8]} | {facts.build_name} | {truth} | {cause} | {sentences} | |")
    kinds: dict[str, list[bool]] = {}
    for index, facts in enumerate(runs.facts):
        if facts.outcome == "success":
            line = lines[facts.build_uuid]
            troubled = line.get("trouble", line.get("fault")) not in ("none", "patch")
            evidence, _ = evidence_without(runs, index)
            outside = any("passing runs have" in text for text in evidence.observations)
            kinds.setdefault("with trouble" if troubled else "without trouble", []).append(outside)
    for kind, total in kinds.items():
        print(f"passing runs {kind}: {sum(total)} of {len(total)} have a series outside of the passing range")


if __name__ == "__main__":
    main()
