"""The part of a prediction's record that says why a run failed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ciml.verdicts import EXIT_LABEL, FAILED, VERDICTS, VerdictRules, make_verdict, read_rules

if TYPE_CHECKING:
    from ciml.datasets.definition import ResolvedDefinition
    from ciml.events.records import RunFacts
    from serving.registry import Registry

#: Facts that a prediction's record does not repeat: large, or of no use for a message. Of the labels, it has the exit
#: status.
_NOT_RECORDED = ("log_url", "subjects", "labels")


def recorded_verdict(
    facts: RunFacts | None, probabilities: Mapping[str, float], rules: VerdictRules | None
) -> dict[str, Any]:
    """Return ``run`` and ``verdict`` of a prediction's record.

    Args:
      facts: of the run; None where an announcement of an earlier version lacks them.
      probabilities: by class, as recorded.
      rules: those of the model; None for a model that gives no verdicts.

    Returns:
      The two entries as JSON; nothing for a run that did not fail, or without facts or rules.
    """
    if facts is None or rules is None or facts.outcome not in FAILED:
        return {}
    run = {name: value for name, value in facts.to_json().items() if name not in _NOT_RECORDED}
    if EXIT_LABEL in facts.labels:
        run["labels"] = {EXIT_LABEL: facts.labels[EXIT_LABEL]}  # evidence says which signal ended the run
    return {"run": run, "verdict": make_verdict(facts.build_name, probabilities, rules).to_json()}


def rules_of(registry: Registry, version: int, definition: ResolvedDefinition) -> VerdictRules | None:
    """Return the rules in a pushed version's assets, verified against the registry; None for a model without.

    Raises:
      IntegrityError: if the file was altered, or is malformed.
    """
    if f"assets/{VERDICTS}" not in registry.state.files(version):
        return None
    where = f"model {registry.model}, version {version}: assets/{VERDICTS}"
    return read_rules(registry.read_asset(version, VERDICTS), definition.classes, where)
