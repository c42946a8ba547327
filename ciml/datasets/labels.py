"""The class of a run, from its facts."""

from __future__ import annotations

from collections.abc import Mapping

from ciml.events.records import RunFacts
from ciml.raw.causes import CAUSE, FAILED

#: Label 0 and label 1 of ``status``.
STATUS_CLASSES = ("passed", "failed")
#: A timeout is a failure. All other outcomes reveal nothing about code or machine, and are not labels.
_STATUS = {"success": "passed", "failure": "failed", "timeout": "failed"}
#: Names of the original that differ here.
_ALIASES = {"node_provider": "provider", "node_provider_all": "provider-region", "node_flavor": "flavour"}
#: Facts that may be labels by their own name; any other name is looked up in the run's labels.
_FACTS = frozenset(
    {"build_name", "outcome", "result", "source", "event", "pipeline", "project", "branch", "change", "review"}
    | {"provider", "region", "flavour"}
)


def label_of(facts: RunFacts, class_label: str, class_map: Mapping[str, str]) -> str | None:
    """Return the class of a run, or None where it has none.

    Args:
      facts: the run's facts.
      class_label: ``status``; ``cause`` (of failed runs alone); ``provider`` (its regions merged) or
        ``provider-region``; or the name of any metadata.
      class_map: from a value to its class; other values are their own class.
    """
    value = _value(facts, _ALIASES.get(class_label, class_label) if class_label not in facts.labels else class_label)
    return class_map.get(value, value) or None if value else None


def _value(facts: RunFacts, name: str) -> str | None:
    if name == "status":
        return _STATUS.get(facts.outcome or "")
    if name == CAUSE:
        return facts.labels.get(CAUSE) if facts.outcome in FAILED else None
    if name == "provider-region":
        return "-".join(part for part in (facts.provider, facts.region) if part)
    if name in _FACTS and (fact := getattr(facts, name)):
        return str(fact)
    return facts.labels.get(name)
