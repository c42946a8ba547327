"""The part of a prediction's record that says why a run failed."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np

from ciml.raw.causes import FAILED
from ciml.serving.registry import Registry
from ciml.transforms.examples.prepare import run_means
from ciml.verdicts import EXIT_LABEL, SIGNAL_LABEL, VERDICTS, Verdict, VerdictRules, make_verdict, read_rules

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from ciml.data_root import DataRoot
    from ciml.datasets.definition import ResolvedDefinition
    from ciml.events.records import RunFacts

#: Facts that a prediction's record does not repeat: large, or of no use for a message. Of the labels, it has the exit
#: status and the signal.
_NOT_RECORDED = ("log_url", "subjects", "labels")


def verdict_of(
    facts: RunFacts | None,
    probabilities: Mapping[str, float],
    rules: VerdictRules | None,
    windows: NDArray[np.float32],
) -> Verdict | None:
    """Return the verdict on a run; None for one that did not fail, or without facts or rules.

    Args:
      facts: of the run; None where they are unknown.
      probabilities: by class, as recorded.
      rules: those of the model; None for a model that gives no verdicts.
      windows: float32 [n, F], those of the run, not normalised.
    """
    if facts is None or rules is None or facts.outcome not in FAILED:
        return None
    (means,) = run_means(windows[None], np.array([len(windows)]))
    return make_verdict(facts.build_name, probabilities, rules, means)


def recorded_verdict(
    facts: RunFacts | None,
    probabilities: Mapping[str, float],
    rules: VerdictRules | None,
    windows: NDArray[np.float32],
) -> dict[str, Any]:
    """Return ``run`` and ``verdict`` of a prediction's record as JSON; nothing where `verdict_of` has no verdict."""
    verdict = verdict_of(facts, probabilities, rules, windows)
    if facts is None or verdict is None:
        return {}
    run = {name: value for name, value in facts.to_json().items() if name not in _NOT_RECORDED}
    # Evidence says which signal ended the run.
    if ended := {name: facts.labels[name] for name in (EXIT_LABEL, SIGNAL_LABEL) if name in facts.labels}:
        run["labels"] = ended
    return {"run": run, "verdict": verdict.to_json()}


@lru_cache(maxsize=8)
def knows_ranges(data: DataRoot, model: str, version: int) -> bool:
    """Return whether a pushed version recognises runs unlike those that it learned; earlier versions of ciml stored no
    ranges.

    Raises:
      IntegrityError: if its rules were altered.
    """
    registry = Registry(data, model)
    if f"assets/{VERDICTS}" not in registry.state.files(version):
        return False
    rules = json.loads(registry.read_asset(version, VERDICTS))
    return rules.get("ranges") is not None


def rules_of(registry: Registry, version: int, definition: ResolvedDefinition) -> VerdictRules | None:
    """Return the rules in a pushed version's assets, verified against the registry; None for a model without.

    Raises:
      IntegrityError: if the file was altered, or is malformed.
    """
    if f"assets/{VERDICTS}" not in registry.state.files(version):
        return None
    where = f"model {registry.model}, version {version}: assets/{VERDICTS}"
    return read_rules(registry.read_asset(version, VERDICTS), definition.classes, definition.features, where)
