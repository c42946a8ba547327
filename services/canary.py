"""A canary or shadow of a model: compared with the stable version as labels arrive, then promoted or rolled back.

The version with the label ``canary`` predicts a share of the runs, always all runs of a change, and the stable version
the others (`ciml.serving.predict.predictor.PredictPolicy`). The one with the label ``shadow`` predicts all runs next to
the stable version, in a stream of its own, so they are compared on the same runs. `compare_canary` reads the
predictions and what the runs were; `settle_canary` acts on it, which the registry records with the figures.

Runs of a change fail, and are misjudged, together. So the first labelled run of a change is the only one that counts.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

from ciml.data_root import DataRoot
from ciml.datasets.definition import ResolvedDefinition
from ciml.events.outcomes import CAUSE, FAILED
from ciml.events.records import RunFacts, change_of
from ciml.intervals import wilson
from ciml.runs.latest_runs import latest_runs
from ciml.runs.state import open_raw
from ciml.serving.contract import DEFINITION, read_definition
from ciml.serving.ledger import promote, withdraw
from ciml.serving.predict.log import is_of_candidate, is_of_shadow, read_predictions
from ciml.serving.registry import CANARY, SHADOW, STABLE, Registry, Signature
from ciml.training.evaluation.sequential import Arm, PairedComparison, SequentialComparison
from ciml.trust import PolicySource, evaluate
from ciml.verdicts.feedback.truths import Truths

_DAY_S = 86_400.0


@dataclass(frozen=True)
class CanaryRule:
    """When a canary is promoted or rolled back.

    Attributes:
      margin: by how much less often right than the stable version it may be.
      level: largest probability of a wrong promotion, and of a wrong rollback, however often it is looked at. Changes
        must be independent of each other.
      wait_s: for how long the cause of a failed run is waited for, seconds. Predictions are compared in their order, so
        that a look at the labels that came first cannot decide.
    """

    margin: float = 0.02
    level: float = 0.05
    wait_s: float = 7 * _DAY_S


@dataclass(frozen=True)
class Shares:
    """How often a version was right, and how often its probabilities say that it is.

    Attributes:
      version: of the model.
      right: right predictions of labelled runs.
      labelled: labelled runs, one of each change.
      predictions: all predicted runs since the canary began, labelled or not.
      estimate: the expected share of right ones among all, by the probabilities: the mean of the highest one of each
        run. It needs no label, and is as good as the calibration (confidence-based performance estimation).
      error: half of the 95 % interval of that share, if the probabilities are right and the runs independent.
    """

    version: int
    right: int
    labelled: int
    predictions: int
    estimate: float | None
    error: float | None

    def text(self) -> str:
        """Return the shares as one line."""
        low, high = wilson(self.right, self.labelled)
        labelled = f"right in {self.right} of {self.labelled} labelled runs"
        if self.labelled:
            labelled += f" ({self.right / self.labelled:.3f}, {low:.3f} to {high:.3f})"
        if self.estimate is None or self.error is None:
            return labelled
        return f"{labelled}; {self.estimate:.3f} ± {self.error:.3f} expected of {self.predictions} by its probabilities"


@dataclass(frozen=True)
class CanaryReport:
    """A canary or shadow next to the stable version.

    Attributes:
      canary, stable: their figures.
      decision: ``promote``, ``rollback``, or "" while neither is shown.
      worse, not_worse: evidence that the canary is worse, and that it is not worse by the margin: each is decided where
        it reaches 1 / level.
      waits: predictions that are not compared yet, because the cause of an earlier run is not known.
      rule: the rule.
      label: ``canary`` or ``shadow``.
    """

    canary: Shares
    stable: Shares
    decision: str
    worse: float
    not_worse: float
    waits: int
    rule: CanaryRule
    label: str = CANARY

    def to_json(self) -> dict[str, Any]:
        """Return the attributes as JSON."""
        return asdict(self)

    def lines(self) -> list[str]:
        """Return the report as lines of text."""
        needed = 1 / self.rule.level
        waits = f"; {self.waits} predictions wait for the cause of an earlier run" if self.waits else ""
        decisions = {
            "promote": f"promote the {self.label}",
            "rollback": f"roll the {self.label} back",
            "": "not decided yet",
        }
        return [
            f"{self.label}, version {self.canary.version}: {self.canary.text()}",
            f"stable, version {self.stable.version}: {self.stable.text()}",
            f"evidence from one run of each change that it is worse: {self.worse:.3g}, that it is not worse by "
            f"{self.rule.margin:g}: {self.not_worse:.3g}; {needed:.3g} decides",
            f"{decisions[self.decision]}{waits}",
        ]


def compare_canary(
    data: DataRoot,
    model: str,
    trust: PolicySource,
    rule: CanaryRule | None = None,
    *,
    label: str = CANARY,
) -> CanaryReport | None:
    """Compare the canary or shadow of a model with its stable version; None if there is none.

    Only runs that are trusted now count, and the first labelled one of each change.

    Args:
      data: the data root.
      model: its name.
      trust: the trust policy.
      rule: by default `CanaryRule()`.
      label: ``canary`` or ``shadow``.

    Raises:
      EngineError: the store does not answer.
      IntegrityError: a manifest is damaged.
    """
    rule = rule or CanaryRule()
    registry = Registry(data, model)
    labels = dict(registry.state.labels)  # a person may move one while predictions are read
    versions = {labels[name]: name for name in (STABLE, label) if name in labels}
    if len(versions) < 2:
        return None
    since_us = _labelled_us(registry, label, labels[label])
    predictions = [
        prediction
        for prediction in read_predictions(data.predictions, since_us)
        if prediction["model"] == model
        and not is_of_candidate(prediction)
        and prediction["version"] in versions
        and is_of_shadow(prediction) == (versions[prediction["version"]] == SHADOW)
    ]
    definitions = {
        version: read_definition(registry.read_asset(version, DEFINITION), f"model {model}, version {version}")
        for version in versions
    }
    known = known_runs(data, trust, predictions, definitions)
    comparison: PairedComparison | SequentialComparison
    if label == SHADOW:
        comparison = PairedComparison(rule.margin, rule.level)
        waits = _add_pairs(comparison, predictions, known, rule, time.time())
    else:
        comparison = SequentialComparison(rule.margin, rule.level)
        waits = _add(comparison, predictions, known, versions, rule, time.time())
    worse, not_worse = comparison.evidence
    canary, stable = (
        shares_of(labels[name], arm, predictions)
        for name, arm in ((label, comparison.canary), (STABLE, comparison.stable))
    )
    return CanaryReport(canary, stable, comparison.decision, worse, not_worse, waits, rule, label)


def settle_canary(
    data: DataRoot, model: str, trust: PolicySource, rule: CanaryRule | None = None, *, label: str = CANARY
) -> CanaryReport | None:
    """Do as `compare_canary`, and promote or withdraw the version if that is decided.

    Returns:
      The report; None if there is no such version, or not any more.

    Raises:
      HeldError: it would be promoted, and a person holds the model.
    """
    report = compare_canary(data, model, trust, rule, label=label)
    if report is None or not report.decision:
        return report
    registry = Registry(data, model)
    labels = registry.state.labels
    if (labels.get(label), labels.get(STABLE)) != (report.canary.version, report.stable.version):
        return None  # a person has decided meanwhile
    signed = Signature(f"the {label} rule", "; ".join(report.lines()[:3]))
    if report.decision == "promote":
        promote(registry, report.canary.version, signed)
    else:
        withdraw(registry, [report.canary.version], signed)
    return report


def _labelled_us(registry: Registry, label: str, version: int) -> int:
    """Return when a label was last given to a version, epoch microseconds."""
    times = [delta["time_us"] for delta in registry.deltas() if delta.get("labels", {}).get(label) == version]
    return int(times[-1])


class KnownRun(NamedTuple):
    """What is known of a run that a version predicted.

    Attributes:
      subject: what stands for its change, see `ciml.events.records.change_of`.
      name: its class by the definition of the version; "" for a failed run whose cause may still become known.
    """

    subject: str
    name: str


#: Known runs by run id and version.
KnownRuns = Mapping[tuple[str, int], KnownRun]


def known_runs(
    data: DataRoot,
    trust: PolicySource,
    predictions: Iterable[Mapping[str, Any]],
    definitions: Mapping[int, ResolvedDefinition],
) -> dict[tuple[str, int], KnownRun]:
    """Return what is known of those predicted runs that are trusted and stored, and have a class or may get one.

    Args:
      data: the data root.
      trust: the trust policy.
      predictions: of the runs.
      definitions: of the versions that predicted.
    """
    unseen: dict[str, set[int]] = {}
    for prediction in predictions:
        unseen.setdefault(prediction["run_id"], set()).add(prediction["version"])
    policy = trust.current()
    truths = Truths(data)
    if any(definition.definition.class_label == CAUSE for definition in definitions.values()):
        truths.read()
    known: dict[tuple[str, int], KnownRun] = {}
    for run in latest_runs(*open_raw(data.raw)):
        if not unseen:
            break
        versions = unseen.pop(run.facts.run_id, ())
        if not versions or not evaluate(policy, run.facts).trusted:
            continue
        facts = run.facts.replace(outcome=run.outcome or None)
        for version in versions:
            name = _class_of(facts, definitions[version], truths)
            if name is not None:
                known[facts.run_id, version] = KnownRun(change_of(facts), name)
    return known


def _class_of(facts: RunFacts, definition: ResolvedDefinition, truths: Truths) -> str | None:
    """Return the class of a run; "" for a failed run whose cause may still become known, None for no class."""
    if definition.definition.class_label == CAUSE:
        return truths.of(facts.run_id).cause if facts.outcome in FAILED else None
    label = definition.label_of(facts)
    return label[1] if isinstance(label, tuple) else None


def _add(
    comparison: SequentialComparison,
    predictions: list[dict[str, Any]],
    known: KnownRuns,
    versions: Mapping[int, str],
    rule: CanaryRule,
    now_s: float,
) -> int:
    """Add the predictions that `settled` returns; return how many wait."""
    settled_runs, waits = settled(predictions, known, rule.wait_s, now_s)
    for prediction, is_right in settled_runs:
        comparison.add(is_canary=versions[prediction["version"]] == CANARY, is_right=is_right)
    return waits


def settled(
    predictions: Sequence[Mapping[str, Any]], known: KnownRuns, wait_s: float, now_s: float
) -> tuple[list[tuple[Mapping[str, Any], bool]], int]:
    """Return the predictions that count, and whether each is right, up to the first one that is waited for.

    Of each version and change, the first prediction of a run whose class is known counts.

    Args:
      predictions: in the order of their commits.
      known: by `known_runs`.
      wait_s: for how long the cause of a failed run is waited for, seconds.
      now_s: the present time, epoch seconds.

    Returns:
      The pairs, and how many predictions follow them.
    """
    settled_runs = []
    counted: set[tuple[int, str]] = set()
    for index, prediction in enumerate(predictions):
        version = prediction["version"]
        run = known.get((prediction["run_id"], version))
        if run is None or (version, run.subject) in counted:
            continue
        if run.name:
            counted.add((version, run.subject))
            settled_runs.append((prediction, prediction["class"] == run.name))
        elif prediction["time_us"] / 1e6 + wait_s > now_s:
            return settled_runs, len(predictions) - index
    return settled_runs, 0


def _pairs(predictions: Iterable[dict[str, Any]]) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """Yield the shadow's and the stable version's prediction of each run, in the order in which pairs were complete."""
    first: dict[tuple[str, bool], dict[str, Any]] = {}
    for prediction in predictions:
        run_id = prediction["run_id"]
        is_shadow = is_of_shadow(prediction)
        if (run_id, is_shadow) in first:
            continue  # a row that was replaced is predicted again: its first prediction counts
        first[run_id, is_shadow] = prediction
        counterpart = first.get((run_id, not is_shadow))
        if counterpart is not None:
            yield (prediction, counterpart) if is_shadow else (counterpart, prediction)


def _add_pairs(
    comparison: PairedComparison,
    predictions: list[dict[str, Any]],
    known: KnownRuns,
    rule: CanaryRule,
    now_s: float,
) -> int:
    """Add the pairs whose classes are known, one of each change, as `settled` does; return how many wait."""
    pairs = list(_pairs(predictions))
    stable_of = {shadow["run_id"]: stable for shadow, stable in pairs}
    settled_runs, waits = settled([shadow for shadow, _ in pairs], known, rule.wait_s, now_s)
    for shadow, is_right in settled_runs:
        stable = stable_of[shadow["run_id"]]
        run = known.get((stable["run_id"], stable["version"]))
        if run is not None and run.name:
            comparison.add(canary_is_right=is_right, stable_is_right=stable["class"] == run.name)
    return waits


def shares_of(version: int, arm: Arm, predictions: list[dict[str, Any]]) -> Shares:
    """Return the shares of a version. The first prediction of each run counts.

    Args:
      version: of the model.
      arm: its labelled predictions.
      predictions: in the order of their commits.
    """
    first: dict[str, dict[str, Any]] = {}
    for prediction in predictions:
        if prediction["version"] == version:
            first.setdefault(prediction["run_id"], prediction)
    highest = [max(prediction["probabilities"].values()) for prediction in first.values()]
    if not highest:
        return Shares(version, arm.right, arm.runs, 0, None, None)
    error = 1.96 * math.sqrt(sum(share * (1 - share) for share in highest)) / len(highest)
    return Shares(version, arm.right, arm.runs, len(highest), sum(highest) / len(highest), error)
