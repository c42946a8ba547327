"""Review of a trust policy over stored runs: what it would change, and which rule decides about a run and why. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from ciml.events.records import RunFacts
from ciml.runs.latest_runs import StoredRun
from ciml.trust import TrustPolicy, evaluate


class Decision(NamedTuple):
    """A decision on a run: whether it is trusted, and the rule."""

    trusted: bool
    rule: str


class ChangedRun(NamedTuple):
    """A run whose trust a policy would change."""

    run_id: str
    build_name: str
    source: str
    before: Decision
    after: Decision


@dataclass
class Review:
    """Counts of stored runs by what a policy would change of their trust.

    Attributes:
      runs: number of stored runs.
      trusted: number that are trusted now.
      trusted_after: number that the policy would trust.
      rules: by the decisions before and after, where the trust changes.
      places: by source, job and whether the run would be trusted, where the trust changes.
    """

    runs: int = 0
    trusted: int = 0
    trusted_after: int = 0
    rules: Counter[tuple[Decision, Decision]] = field(default_factory=Counter)
    places: Counter[tuple[str, str, bool]] = field(default_factory=Counter)

    def to_json(self) -> dict[str, Any]:
        return {
            "runs": self.runs,
            "trusted": self.trusted,
            "trusted_after": self.trusted_after,
            "changed": sum(self.rules.values()),
            "rules": [
                {"from": before._asdict(), "to": after._asdict(), "runs": number}
                for (before, after), number in self.rules.most_common()
            ],
            "places": [
                {"source": source, "build_name": job, "trusted": trusted, "runs": number}
                for (source, job, trusted), number in self.places.most_common()
            ],
        }


def review(runs: Iterable[StoredRun], policy: TrustPolicy, found: Review) -> Iterator[ChangedRun]:
    """Yield the runs whose trust a policy would change.

    Args:
      runs: stored runs, with their joined facts and their last decision.
      policy: the policy to try.
      found: receives the counts.
    """
    for run in runs:
        facts = run.facts
        before = Decision(run.trust.get("trusted", False), run.trust.get("rule", ""))
        now = evaluate(policy, facts)
        after = Decision(now.trusted, now.rule)
        found.runs += 1
        found.trusted += before.trusted
        found.trusted_after += after.trusted
        if before.trusted != after.trusted:
            found.rules[before, after] += 1
            found.places[facts.source, facts.build_name, after.trusted] += 1
            yield ChangedRun(facts.run_id, facts.build_name, facts.source, before, after)


class Mismatch(NamedTuple):
    """A fact of a run that none of a rule's globs matches."""

    fact: str
    value: str
    globs: tuple[str, ...]


class RuleTrace(NamedTuple):
    """What a rule says of a run.

    Attributes:
      rule: its name.
      trusted: its decision, where it matches.
      decides: whether it is the first that matches.
      mismatches: the facts that do not match; none where the rule matches.
    """

    rule: str
    trusted: bool
    decides: bool
    mismatches: tuple[Mismatch, ...]


def trace(policy: TrustPolicy, facts: RunFacts) -> list[RuleTrace]:
    """Return what each rule of a policy says of a run, in order."""
    traces: list[RuleTrace] = []
    decided = False
    for rule in policy.rules:
        missed = tuple(
            Mismatch(name, getattr(facts, name), globs)
            for name, globs in rule.facts
            if not policy.matcher(globs).fullmatch(getattr(facts, name))
        )
        traces.append(RuleTrace(rule.name, rule.trusted, not missed and not decided, missed))
        decided = decided or not missed
    return traces
