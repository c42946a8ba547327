"""Trust: whether a run may be trained on, decided by a policy file from the facts of the run.

A policy is an ordered list of rules. A rule matches a run if each fact that it names matches one of its globs. The
first rule that matches decides, and a run that no rule matches is untrusted. Caps limit the share of the training runs
of a class that one author, project or source provides. `review` and `trace` show the effect of a policy on stored runs.
"""

from __future__ import annotations

import logging
import os
import re
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from itertools import accumulate
from operator import attrgetter
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from ciml.digest import sha256_json
from ciml.errors import CimlError
from ciml.events.records import Batch, RunFacts, Trust
from ciml.globs import PathGlobs, crosses_slash, glob_pattern
from ciml.settings import parse_toml, read_toml

#: The facts that a rule may match: fields of `RunFacts`. New ones go to the end: digests of policies do not change.
FACTS = ("source", "pipeline", "project", "branch", "event", "review", "fork", "auth", "owner", "adapter")
_values_of_facts = attrgetter(*FACTS)
#: Facts whose values never contain a ``/``.
_WITHOUT_SLASH = frozenset({"source", "fork", "auth"})

#: The meaning of globs: ``*`` also matches a ``/`` (`glob_pattern`), or does not (`PathGlobs`).
FORMER_GLOBS = 1
PATH_GLOBS = 2

#: The keys of ``[caps]``, and the fact that each limits. A run that exceeds several counts for the first.
CAPS = {"author": "owner", "project": "project", "source": "source"}

#: `Trust.rule` of a run that no rule matches.
NO_RULE = "no rule"
#: The environment variable that names the policy where no other is named.
POLICY_VARIABLE = "CIML_TRUST_POLICY"
#: The file of the built-in policy, next to this module.
_BUILT_IN = "trust_default.toml"
_MAX_REMEMBERED = 10_000
_log = logging.getLogger(__name__)

Globs = tuple[str, ...]
Caps = tuple[tuple[str, float], ...]
Matcher = re.Pattern[str] | PathGlobs


@dataclass(frozen=True, slots=True)
class Rule:
    """A rule of a policy.

    Attributes:
      name: recorded with the runs that it decides.
      trusted: its decision.
      facts: (fact, globs) in the order of `FACTS`.
    """

    name: str
    trusted: bool
    facts: tuple[tuple[str, Globs], ...]


class _CompiledRule(NamedTuple):
    """A rule as it is evaluated: what matches the values of its facts, by index in `FACTS`, and its decision."""

    matchers: tuple[tuple[int, Matcher], ...]
    decision: Trust


class PolicySource(Protocol):
    """Whatever names the trust policy to judge by at present: a `TrustPolicy`, or what follows that of a data root."""

    def current(self) -> TrustPolicy:
        """Return the policy to judge by now."""


@dataclass(frozen=True)
class TrustPolicy:
    """A trust policy: `load` reads one from a file, and `evaluate` decides by it.

    Attributes:
      rules: in the file's order.
      digest: digest of the rules and caps, not of the file's bytes, 16 hex digits; recorded with each decision.
      globs: the meaning of globs, `FORMER_GLOBS` or `PATH_GLOBS`.
      caps: (key of `CAPS`, largest share of the training runs of a class that one value provides), in that order.
      quarantine: whether each refresh excludes trusted runs that are unlike the others of their job and class.
    """

    rules: tuple[Rule, ...]
    digest: str
    globs: int
    caps: Caps
    quarantine: bool
    _compiled: tuple[_CompiledRule, ...] = field(repr=False, compare=False)
    _decided: dict[tuple[str, ...], Trust] = field(default_factory=dict, repr=False, compare=False)

    @classmethod
    def load(cls, path: str | os.PathLike[str] | None = None) -> TrustPolicy:
        """Load the policy in a TOML file.

        Args:
          path: the file; without it, the one that the environment variable `POLICY_VARIABLE` names, else the built-in
            policy: what Zuul reviewed, gated or merged in the usual branches, with a proof, and listings.

        Raises:
          CimlError: the file cannot be read or is not a policy.
        """
        path = path or os.environ.get(POLICY_VARIABLE) or None
        if path is None:
            return cls.parse(Path(__file__).with_name(_BUILT_IN).read_text(), f"built-in {_BUILT_IN}")
        return cls.from_json(read_toml(path), os.fspath(path))

    @classmethod
    def parse(cls, text: str, where: str = "the trust policy") -> TrustPolicy:
        """Parse the policy in a TOML text.

        Raises:
          CimlError: one line that names the rule and the key, for anything outside the format.
        """
        return cls.from_json(parse_toml(text, where), where)

    @classmethod
    def from_json(cls, document: Mapping[str, Any], where: str = "the trust policy") -> TrustPolicy:
        """Return the policy of a document: ``rule``, ``globs``, ``caps`` and ``quarantine``. Raises as `parse`."""
        for key in document:
            if key not in ("rule", "globs", "caps", "quarantine"):
                raise CimlError(
                    f"{where}: unknown key {key!r}; a policy is a list of [[rule]], globs = {PATH_GLOBS}, "
                    "quarantine = true, and [caps]"
                )
        globs = document.get("globs", FORMER_GLOBS)
        if type(globs) is not int or globs not in (FORMER_GLOBS, PATH_GLOBS):
            raise CimlError(f"{where}: globs must be {FORMER_GLOBS} or {PATH_GLOBS}, not {globs!r:.80}")
        items = document.get("rule", [])
        if not isinstance(items, list) or not all(isinstance(item, dict) for item in items):
            raise CimlError(f"{where}: write rules as [[rule]]")
        rules = tuple(_rule(item, f"{where}: rule {number}") for number, item in enumerate(items, 1))
        names = [rule.name for rule in rules]
        for name in names:
            if names.count(name) > 1:
                raise CimlError(f"{where}: two rules have the name {name!r}")
        quarantine = document.get("quarantine", False)
        if not isinstance(quarantine, bool):
            raise CimlError(f"{where}: quarantine must be true or false, not {quarantine!r:.80}")
        policy = cls.of(rules, globs, _caps(document.get("caps", {}), where), quarantine)
        policy._warn_of_crossing_globs(where)
        return policy

    @classmethod
    def of(
        cls, rules: tuple[Rule, ...], globs: int = FORMER_GLOBS, caps: Caps = (), quarantine: bool = False
    ) -> TrustPolicy:
        """Return the policy of these rules and caps."""
        content: Any = [[rule.name, rule.trusted, rule.facts] for rule in rules]
        if globs != FORMER_GLOBS or caps or quarantine:
            content = {"globs": globs, "rules": content}
        if caps:
            content["caps"] = caps
        if quarantine:
            content["quarantine"] = True
        digest = sha256_json(content)[:16]
        compiled = tuple(
            _CompiledRule(
                tuple((FACTS.index(fact), _matcher(fact_globs, globs)) for fact, fact_globs in rule.facts),
                Trust(rule.trusted, rule.name, digest),
            )
            for rule in rules
        )
        return cls(rules, digest, globs, caps, quarantine, compiled)

    def current(self) -> TrustPolicy:
        """Return the policy itself; see `PolicySource`."""
        return self

    def matcher(self, globs: Globs) -> Matcher:
        """Return the pattern of a value that one of these globs matches, in this policy's meaning of globs."""
        return _matcher(globs, self.globs)

    def _warn_of_crossing_globs(self, where: str) -> None:
        """Log the globs that match more than they would with `PATH_GLOBS`."""
        if self.globs == PATH_GLOBS:
            return
        crossing = [
            f"rule {rule.name!r}: {fact} {glob!r}"
            for rule in self.rules
            for fact, globs in rule.facts
            for glob in globs
            if globs == ("all",) or (fact not in _WITHOUT_SLASH and crosses_slash(glob))
        ]
        if crossing:
            remedy = f"set globs = {PATH_GLOBS} above the first rule: then * ends at '/', and ** does not"
            _log.warning("%s: globs match names with further '/', too: %s; %s", where, ", ".join(crossing), remedy)


def _rule(item: dict[str, Any], where: str) -> Rule:
    for key in item:
        if key not in ("name", "trusted", *FACTS):
            raise CimlError(f"{where}: unknown key {key!r}; choose from name, trusted, {', '.join(FACTS)}")
    name = item.get("name")
    if not isinstance(name, str) or not name.strip() or name == NO_RULE:
        raise CimlError(f"{where}: want a name other than {NO_RULE!r}")
    trusted = item.get("trusted")
    if not isinstance(trusted, bool):
        raise CimlError(f"{where} ({name}): set trusted = true or trusted = false")
    facts = tuple((fact, _globs(item[fact], f"{where} ({name}): {fact}")) for fact in FACTS if fact in item)
    if not facts and trusted:
        raise CimlError(f'{where} ({name}): it would trust everything; to do that, set source = ["*"]')
    return Rule(name, trusted, facts)


def _globs(value: Any, where: str) -> Globs:
    globs = [value] if isinstance(value, str) else value
    if not isinstance(globs, list) or not globs or not all(isinstance(glob, str) for glob in globs):
        raise CimlError(f"{where} must be a glob or a list of globs")
    return tuple(globs)


def _caps(value: Any, where: str) -> Caps:
    if not isinstance(value, dict):
        raise CimlError(f"{where}: write caps as a table: [caps]")
    for key, share in value.items():
        if key not in CAPS:
            raise CimlError(f"{where}: caps: unknown key {key!r}; choose from {', '.join(CAPS)}")
        if type(share) not in (int, float) or not 0 < share <= 1:
            raise CimlError(f"{where}: caps: {key} must be a share above 0 and at most 1, not {share!r:.80}")
    return tuple((key, float(value[key])) for key in CAPS if key in value)


def _matcher(globs: Globs, meaning: int) -> Matcher:
    return PathGlobs(globs) if meaning == PATH_GLOBS else glob_pattern(globs)


def former_policy() -> TrustPolicy:
    """Return the built-in policy until 0.1.0, which decides on stored records of that time without a decision."""
    return TrustPolicy.of(
        (
            Rule("listing", True, (("source", ("backfill",)), ("event", ("listing",)))),
            Rule("gated", True, (("pipeline", ("gate", "promote")),)),
            Rule("merged", True, (("pipeline", ("post", "periodic", "periodic-*", "release")),)),
            Rule("reviewed", True, (("review", ("approved", "merged")),)),
        )
    )


def evaluate(policy: TrustPolicy, facts: RunFacts) -> Trust:
    """Return the policy's decision on a run, with the name of the rule that made it; `NO_RULE` if none matched."""
    values = _values_of_facts(facts)
    remembered = policy._decided
    decision = remembered.get(values)
    if decision is None:
        if len(remembered) >= _MAX_REMEMBERED:  # facts come from outside, so the cache must be bounded
            remembered.clear()
        decision = remembered[values] = _evaluate(policy, values)
    return decision


def _evaluate(policy: TrustPolicy, values: tuple[str, ...]) -> Trust:
    for rule in policy._compiled:
        if all(matcher.fullmatch(values[index]) for index, matcher in rule.matchers):
            return rule.decision
    return Trust(False, NO_RULE, policy.digest)


def beyond_caps(caps: Caps, runs: Sequence[RunFacts]) -> dict[int, str]:
    """Choose the runs to leave out, so that no value provides more than its share of the runs that are left.

    A run without the fact of a cap is not limited by it, and counts in the total. With one cap, as few runs as possible
    are left out. If too few values provide runs, such as two authors for a share of a third, no limited run is left.

    Args:
      caps: of a policy.
      runs: training runs of a class; the first ones of a value stay.

    Returns:
      The runs to leave out: index, and the first cap that the run exceeds.
    """
    shares = {key: Fraction(str(share)) for key, share in caps}  # of the decimal number: 0.29 of 100 are 29
    values = {key: [getattr(run, CAPS[key]) for run in runs] for key in shares}
    total = min((_total_within(share, values[key]) for key, share in shares.items()), default=len(runs))
    while True:
        beyond = _beyond({key: int(share * total) for key, share in shares.items()}, values, len(runs))
        remaining = len(runs) - len(beyond)
        if remaining >= total:
            return beyond
        total = remaining


def _total_within(share: Fraction, values: Sequence[str]) -> int:
    """Return the largest number of runs that a single cap leaves, by its share and the value of each run."""
    sizes = sorted(size for value, size in Counter(values).items() if value)
    sums = [0, *accumulate(sizes)]
    unlimited = len(values) - sums[-1]
    total = len(values)
    while True:
        limit = int(share * total)
        small = bisect_right(sizes, limit)
        allowed_total = unlimited + sums[small] + limit * (len(sizes) - small)
        if allowed_total >= total:
            return total
        total = allowed_total


def _beyond(limits: Mapping[str, int], values: Mapping[str, Sequence[str]], number: int) -> dict[int, str]:
    """Return the runs, by index, beyond the limit of a value, with the cap; a run that is left out uses up no limit."""
    counts: dict[str, Counter[str]] = {key: Counter() for key in limits}
    beyond: dict[int, str] = {}
    for index in range(number):
        capped = [(key, values[key][index]) for key in limits if values[key][index]]
        exceeded = next((key for key, value in capped if counts[key][value] >= limits[key]), None)
        if exceeded is not None:
            beyond[index] = exceeded
            continue
        for key, value in capped:
            counts[key][value] += 1
    return beyond


def evaluate_batch(batch: Batch, source: PolicySource) -> Batch:
    """Judge the pending runs and the settled outcomes of a batch.

    A settled outcome may change a stored run: its outcome, or whether its log is awaited.

    Args:
      batch: unchanged, except for the trust of its pending runs.
      source: names the policy, one for the whole batch.

    Returns:
      The batch with its settled outcomes judged. Outcomes without a run have no facts, and are unchanged.
    """
    policy = source.current()
    for pending in batch.pending_runs:
        pending.trust = evaluate(policy, pending.mention)
    settled = [
        outcome if outcome.mention is None else outcome.replace(trust=evaluate(policy, outcome.mention))
        for outcome in batch.settled
    ]
    return Batch(batch.covers, batch.messages, batch.pending_runs, settled)


class Decision(NamedTuple):
    """Whether a run is trusted, and the rule that decided. Equal decisions of different policies are equal."""

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
    """The changes that a policy would make to the trust of stored runs, in numbers.

    Attributes:
      runs: number of stored runs.
      trusted: number that are trusted now.
      trusted_after: number that the policy would trust.
      rules: number whose trust would change, by the decisions before and after.
      places: number whose trust would change, by source, job and the trust after.
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


def review(runs: Iterable[tuple[RunFacts, Trust]], policy: TrustPolicy, counts: Review) -> Iterator[ChangedRun]:
    """Yield the runs whose trust a policy would change, and add all runs to the counts.

    Args:
      runs: the facts of each stored run, joined with all updates, and the last decision on it.
      policy: the policy to try.
      counts: changed with each run.
    """
    for facts, trust_before in runs:
        trust_after = evaluate(policy, facts)
        before = Decision(trust_before.trusted, trust_before.rule)
        after = Decision(trust_after.trusted, trust_after.rule)
        counts.runs += 1
        counts.trusted += before.trusted
        counts.trusted_after += after.trusted
        if before.trusted != after.trusted:
            counts.rules[before, after] += 1
            counts.places[facts.source, facts.build_name, after.trusted] += 1
            yield ChangedRun(facts.run_id, facts.build_name, facts.source, before, after)


class Mismatch(NamedTuple):
    """A fact of a run that none of a rule's globs matches."""

    fact: str
    value: str
    globs: tuple[str, ...]


class RuleTrace(NamedTuple):
    """The match of a rule with a run.

    Attributes:
      rule: the rule's name.
      trusted: the rule's decision, if it matches.
      decides: whether the rule is the first that matches.
      mismatches: the facts that do not match; none if the rule matches.
    """

    rule: str
    trusted: bool
    decides: bool
    mismatches: tuple[Mismatch, ...]


def trace(policy: TrustPolicy, facts: RunFacts) -> list[RuleTrace]:
    """Return the match of each rule of a policy with a run, in the order of the rules."""
    traces: list[RuleTrace] = []
    is_decided = False
    for rule in policy.rules:
        mismatches = tuple(
            Mismatch(name, getattr(facts, name), globs)
            for name, globs in rule.facts
            if not policy.matcher(globs).fullmatch(getattr(facts, name))
        )
        matches = not mismatches
        traces.append(RuleTrace(rule.name, rule.trusted, matches and not is_decided, mismatches))
        is_decided = is_decided or matches
    return traces
