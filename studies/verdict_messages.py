"""Compare messages of the old and the new rule on recorded runs. Writes the table of messages in docs/verdicts.md.

    python -m studies.verdict_messages FOLDER…

Uses the folds, models and calibrations of `studies.verdicts`. The old rule published each verdict except ``unknown``.
The new rule adds conditions one by one: a probability clearly above the base rate; a run that can be compared with
passing runs of its job on such machines; recently settled verdicts that were right, in the order in which runs ended.
A message is right if the recording, or else reruns, name the same cause.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from ciml.events.outcomes import CAUSES
from ciml.events.records import RunFacts
from ciml.training.experiment import Experiment
from ciml.transforms.profiles import Profiles
from ciml.verdict_rules import Verdict
from ciml.verdicts.evidence import evidence_of_subject
from ciml.verdicts.evidence.observe import Subject
from ciml.verdicts.feedback.config import Policy
from ciml.verdicts.feedback.evidence import compare_profile
from ciml.verdicts.feedback.judgement import Silence, doubt_of
from ciml.verdicts.feedback.standing import RERUNS, REVIEWER, RecordedVerdict, Standings
from studies.figures import share_with_interval
from studies.recordings import EXAMPLES, Recorded, day_us, read
from studies.verdicts import Answer, Fold, by_experiment, divide, features_of, folds_by, verdicts_of_fold

#: The rules, each with the conditions of the one before.
RULES = ("old", "base rate", "comparable", "same machines", "settled by reruns", "settled by reviewers")


@dataclass(frozen=True)
class Judged:
    """A verdict on a held-out failed run.

    Attributes:
      repeat: of the folds.
      row: index into `Recorded.failed`.
      verdict: by the fold's model.
      said: names of the rules that say it.
    """

    repeat: int
    row: int
    verdict: Verdict
    said: frozenset[str]


def judged(runs: Recorded, folds: Iterable[tuple[int, Fold]], answer: Answer, coverage: float) -> list[Judged]:
    """Return the verdicts on all held-out runs, with the rules up to ``same machines`` that say them."""
    judgements = []
    for repeat, fold in folds:
        assert fold.profiles is not None
        for row, _, verdict in verdicts_of_fold(answer, fold, runs.labels, runs.failed_facts, coverage):
            judgements.append(Judged(repeat, row, verdict, rules_of(verdict, runs, row, fold.profiles)))
    return judgements


def rules_of(verdict: Verdict, runs: Recorded, row: int, profiles: Profiles) -> frozenset[str]:
    """Return the rules up to ``same machines`` that say a verdict."""
    if verdict.cause not in CAUSES or verdict.probability < Policy().min_probability:
        return frozenset()
    rules = ["old"]
    if doubt_of(verdict.replace(outside=None), Policy()) is None:
        rules.append("base rate")
        place = runs.failed[row]
        facts = runs.facts[place]
        subject = Subject.of(facts, runs.tables[place], profiles.of(facts.build_name))
        evidence, _ = evidence_of_subject(subject)
        for name, policy in (("comparable", Policy(same_place=False)), ("same machines", Policy())):
            if not isinstance(compare_profile(evidence, policy), Silence):
                rules.append(name)
    return frozenset(rules)


def with_history(verdicts: Sequence[Judged], runs: Recorded, base: str) -> list[Judged]:
    """Add the rules of settled verdicts, in the order of the runs' ends. A rerun settles when its run has ended."""
    rerun_us = rerun_times(runs)
    added: dict[tuple[int, int], set[str]] = {}
    for rule, by in (("settled by reruns", RERUNS), ("settled by reviewers", REVIEWER)):
        for repeat in sorted({judgement.repeat for judgement in verdicts}):
            of_repeat = [judgement for judgement in verdicts if judgement.repeat == repeat]
            history: list[RecordedVerdict] = []
            for judgement in sorted(of_repeat, key=lambda judgement: _end_us(runs, judgement.row)):
                now_us = _end_us(runs, judgement.row)
                facts = runs.facts[runs.failed[judgement.row]]
                settled = [verdict for verdict in history if verdict.settled_us < now_us]
                standing = Standings(settled, Policy(), now_us).of("cause", facts.project, judgement.verdict.cause)
                if base in judgement.said and standing.mode == "active":
                    added.setdefault((repeat, judgement.row), set()).add(rule)
                truth = runs.rerun.get(facts.run_id, "") if by == RERUNS else runs.truth(facts.run_id)
                settled_us = rerun_us.get(facts.run_id, 0) if by == RERUNS else now_us
                if truth:
                    history.append(_recorded(judgement, facts, base in judgement.said, truth, by, settled_us))
    return [
        replace(judgement, said=judgement.said | added.get((judgement.repeat, judgement.row), set()))
        for judgement in verdicts
    ]


def _recorded(judgement: Judged, facts: RunFacts, claim: bool, truth: str, by: str, settled_us: int) -> RecordedVerdict:
    return RecordedVerdict(
        id=facts.run_id,
        run_id=facts.run_id,
        model="cause",
        version=1,
        project=facts.project,
        change=facts.change,
        job=facts.build_name,
        cause=judgement.verdict.cause,
        claim=claim,
        probability=judgement.verdict.probability,
        time_us=facts.end_us or 0,
        trusted=True,
        settled=truth,
        by=by,
        settled_us=settled_us,
    )


def rerun_times(runs: Recorded) -> dict[str, int]:
    """Return when the last attempt of the same change and job ended, for each failed run that a rerun settles."""
    ends: dict[tuple[str, str], int] = {}
    for facts in runs.facts:
        key = facts.change or facts.run_id, facts.build_name
        ends[key] = max(ends.get(key, 0), facts.end_us or 0)
    return {
        facts.run_id: ends[facts.change or facts.run_id, facts.build_name]
        for facts in runs.facts
        if facts.run_id in runs.rerun
    }


def _end_us(runs: Recorded, row: int) -> int:
    return runs.facts[runs.failed[row]].end_us or 0


def rows_of(verdicts: Sequence[Judged], runs: Recorded) -> list[tuple[str, ...]]:
    """Return a row for each rule and cause: messages, right and wrong a repeat, precision with interval, base rate."""
    repeats = len({verdict.repeat for verdict in verdicts})
    held = sorted({verdict.row for verdict in verdicts})
    labels, groups = runs.labels, runs.failed_groups
    rows = []
    for rule in RULES:
        for cause in (*CAUSES, "all"):
            messages = [
                verdict for verdict in verdicts if rule in verdict.said and cause in (verdict.verdict.cause, "all")
            ]
            right = [CAUSES[labels[verdict.row]] == verdict.verdict.cause for verdict in messages]
            share = (
                np.mean(labels[held] == CAUSES.index(cause))
                if cause in CAUSES
                else max(np.mean(labels[held] == label) for label in range(len(CAUSES)))
            )
            low, high = interval(np.array(right, bool), np.array([groups[verdict.row] for verdict in messages], object))
            precision = f"{np.mean(right):.2f} ({low:.2f}–{high:.2f})" if messages else "–"
            counts = (len(messages), sum(right), len(messages) - sum(right))
            rows.append((rule, cause, *(f"{count / repeats:.1f}" for count in counts), precision, f"{share:.2f}"))
    return rows


def interval(right: np.ndarray, groups: np.ndarray) -> tuple[float, float]:
    """Return a 95 % interval of a share, by a bootstrap of whole changes."""
    if not right.size:
        return 0.0, 1.0
    _, low, high = share_with_interval(right, np.ones(right.size), groups.astype(str))
    return low, high


def transfer_folds(runs: Recorded, places: np.ndarray, held_places: Sequence[str]) -> Iterator[tuple[int, Fold]]:
    """Yield a fold for each place: its runs are held out, and the model learns on runs of the other places.

    Args:
      runs: the recordings.
      places: str [n], the place of each run.
      held_places: the places to hold out.
    """
    failed = np.array(runs.failed)
    for place in held_places:
        held = np.flatnonzero(places[failed] == place)
        hidden = set(runs.failed_groups[held])
        is_seen = (places != place) & ~np.isin(runs.groups, list(hidden))
        training = np.flatnonzero(is_seen[failed])
        learned, dev = divide(training, runs.labels, runs.failed_groups, 0)
        yield 0, Fold(learned, dev, held, *features_of(runs, np.flatnonzero(is_seen).tolist()))


def provider_places(runs: Recorded) -> tuple[np.ndarray, list[str]]:
    """Return the provider of each run, and all providers: each is held out in turn."""
    providers = np.array([facts.provider or "none" for facts in runs.facts], object)
    return providers, sorted(set(providers[runs.failed]))


def load_places(runs: Recorded) -> tuple[np.ndarray, list[str]]:
    """Return ``busy`` or ``quiet`` for each run, by the load of 15 minutes at its begin; the quiet are held out."""
    loads = np.array([table.column("load avg:15m")[0].as_py() or 0.0 for table in runs.tables])
    return np.where(loads > np.median(loads[runs.failed]), "busy", "quiet").astype(object), ["quiet"]


def table(rows: Sequence[tuple[str, ...]]) -> str:
    """Return a table in Markdown."""
    heads = ("rule", "verdict", "messages", "right", "wrong", "precision", "base rate")
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in rows)])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folders", type=Path, nargs="+", metavar="FOLDER")
    parser.add_argument("--folds", type=int, default=5)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--since", type=day_us, help="hold out all runs of this day (UTC) and later")
    transfers = {"provider": provider_places, "load": load_places}
    parser.add_argument("--transfer", choices=list(transfers), help="learn elsewhere: each provider, or the quiet runs")
    options = parser.parse_args()
    experiment = Experiment.load(EXAMPLES / "cause-experiment.toml")
    runs = read(options.folders)
    folds = folds_by(runs, options.since, options.folds, options.repeats)
    if options.transfer:
        folds = transfer_folds(runs, *transfers[options.transfer](runs))
    judgements = judged(runs, folds, by_experiment(experiment), experiment.coverage)
    for base in ("comparable", "same machines"):
        print(f"settled verdicts on top of: {base}")
        print(table(rows_of(with_history(judgements, runs, base), runs)))


if __name__ == "__main__":
    main()
