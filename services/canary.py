"""A canary or shadow of a model: compared with the stable version as labels arrive, then promoted or rolled back.

The version with the label ``canary`` predicts a share of the runs, always all runs of a change, and the stable version
the others (`ciml.serving.predict.predictor.PredictPolicy`). The one with the label ``shadow`` predicts all runs next to
the stable version, in a stream of its own, so they are compared on the same runs. `compare_canary` reads the
predictions and what the runs were; `settle_canary` acts on it, which the registry records with the figures.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from ciml.data_root import DataRoot
from ciml.datasets.definition import ResolvedDefinition
from ciml.events.outcomes import CAUSE
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
      level: largest probability of a wrong promotion, and of a wrong rollback, however often it is looked at.
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
      labelled: labelled runs.
      predictions: all predictions since the canary began, labelled or not.
      estimate: the expected share of right ones among all, by the probabilities: the mean of the highest one of each
        run. It needs no label, and is as good as the calibration (confidence-based performance estimation).
      error: half of the 95 % interval of that share, if the probabilities are right.
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
            f"evidence that it is worse: {self.worse:.3g}, that it is not worse by {self.rule.margin:g}: "
            f"{self.not_worse:.3g}; {needed:.3g} decides",
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

    Only runs that are trusted now count.

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
    labels = registry.state.labels
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
    names = classes_of(data, trust, predictions, definitions)
    comparison: PairedComparison | SequentialComparison
    if label == SHADOW:
        comparison = PairedComparison(rule.margin, rule.level)
        waits = _add_pairs(comparison, predictions, names, rule, time.time())
    else:
        comparison = SequentialComparison(rule.margin, rule.level)
        waits = _add(comparison, predictions, names, versions, rule, time.time())
    worse, not_worse = comparison.evidence
    canary, stable = (
        shares_of(
            labels[name], arm, [prediction for prediction in predictions if prediction["version"] == labels[name]]
        )
        for name, arm in ((label, comparison.canary), (STABLE, comparison.stable))
    )
    return CanaryReport(canary, stable, comparison.decision, worse, not_worse, waits, rule, label)


def settle_canary(
    data: DataRoot, model: str, trust: PolicySource, rule: CanaryRule | None = None, *, label: str = CANARY
) -> CanaryReport | None:
    """Do as `compare_canary`, and promote or withdraw the version if that is decided.

    Raises:
      HeldError: it would be promoted, and a person holds the model.
    """
    report = compare_canary(data, model, trust, rule, label=label)
    if report is None or not report.decision:
        return report
    registry = Registry(data, model)
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


def classes_of(
    data: DataRoot,
    trust: PolicySource,
    predictions: Iterable[Mapping[str, Any]],
    definitions: Mapping[int, ResolvedDefinition],
) -> dict[str, str]:
    """Return the classes of those predicted runs that are trusted and stored, by run id; "" for one not known yet.

    Args:
      data: the data root.
      trust: the trust policy.
      predictions: of the runs.
      definitions: of the versions that predicted.
    """
    version_of = {prediction["run_id"]: prediction["version"] for prediction in predictions}
    policy = trust.current()
    truths = None
    if any(definition.definition.class_label == CAUSE for definition in definitions.values()):
        truths = Truths(data)
        truths.read()
    names: dict[str, str] = {}
    unseen = set(version_of)
    for run in latest_runs(*open_raw(data.raw)):
        run_id = run.facts.run_id
        if not unseen:
            break
        if run_id not in unseen:
            continue
        unseen.remove(run_id)
        if not evaluate(policy, run.facts).trusted:
            continue
        definition = definitions[version_of[run_id]]
        if truths is not None and definition.definition.class_label == CAUSE:
            names[run_id] = truths.of(run_id).cause
        else:
            label = definition.label_of(run.facts.replace(outcome=run.outcome or None))
            names[run_id] = label[1] if isinstance(label, tuple) else ""
    return names


def _add(
    comparison: SequentialComparison,
    predictions: list[dict[str, Any]],
    names: Mapping[str, str],
    versions: Mapping[int, str],
    rule: CanaryRule,
    now_s: float,
) -> int:
    """Add the predictions whose class is known, up to the first one that is waited for; return how many follow it."""
    settled_runs, waits = settled(predictions, names, rule.wait_s, now_s)
    for prediction, is_right in settled_runs:
        comparison.add(is_canary=versions[prediction["version"]] == CANARY, is_right=is_right)
    return waits


def settled(
    predictions: Sequence[Mapping[str, Any]], names: Mapping[str, str], wait_s: float, now_s: float
) -> tuple[list[tuple[Mapping[str, Any], bool]], int]:
    """Return the predictions whose class is known, and whether each is right, up to the first one that is waited for.

    Args:
      predictions: in the order of their commits.
      names: by `classes_of`.
      wait_s: for how long the cause of a failed run is waited for, seconds.
      now_s: the present time, epoch seconds.

    Returns:
      The pairs, and how many predictions follow them.
    """
    settled_runs = []
    for index, prediction in enumerate(predictions):
        name = names.get(prediction["run_id"])
        if name:
            settled_runs.append((prediction, prediction["class"] == name))
        elif name == "" and prediction["label"] == CAUSE and prediction["time_us"] / 1e6 + wait_s > now_s:
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
    names: Mapping[str, str],
    rule: CanaryRule,
    now_s: float,
) -> int:
    """Add the pairs whose class is known, up to the first one that is waited for; return how many follow it."""
    pairs = list(_pairs(predictions))
    stable_of = {shadow["run_id"]: stable for shadow, stable in pairs}
    settled_runs, waits = settled([shadow for shadow, _ in pairs], names, rule.wait_s, now_s)
    for shadow, is_right in settled_runs:
        run_id = shadow["run_id"]
        comparison.add(canary_is_right=is_right, stable_is_right=stable_of[run_id]["class"] == names[run_id])
    return waits


def shares_of(version: int, arm: Arm, predictions: list[dict[str, Any]]) -> Shares:
    of_version = (prediction for prediction in predictions if prediction["version"] == version)
    highest = [max(prediction["probabilities"].values()) for prediction in of_version]
    if not highest:
        return Shares(version, arm.right, arm.runs, 0, None, None)
    error = 1.96 * math.sqrt(sum(share * (1 - share) for share in highest)) / len(highest)
    return Shares(version, arm.right, arm.runs, len(highest), sum(highest) / len(highest), error)
