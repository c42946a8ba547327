"""Trust: whether a run may be trained on, decided by a policy file from its facts."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from operator import attrgetter
from pathlib import Path
from typing import Any

from ciml.digest import sha256_json
from ciml.errors import CimlError
from ciml.events.records import Batch, RunFacts, Trust
from ciml.globs import PathGlobs, crosses_slash, glob_pattern
from ciml.settings import parse_toml, read_toml

#: The facts that a rule may match: fields of `RunFacts`. New ones go to the end: digests of policies do not change.
FACTS = ("source", "pipeline", "project", "branch", "event", "review", "fork", "auth", "owner", "adapter")

#: The meaning of globs: ``*`` also matches a ``/`` (`glob_pattern`), or does not (`PathGlobs`).
FORMER_GLOBS = 1
PATH_GLOBS = 2

#: `Trust.rule` of a run that no rule matches: it is untrusted.
NO_RULE = "no rule"

_DEFAULT = "trust_default.toml"
#: The environment variable that names the policy where no other is named.
POLICY_VARIABLE = "CIML_TRUST_POLICY"
#: The rules of the built-in policy until 0.1.0: name, and the globs of its facts.
_FORMER: tuple[tuple[str, tuple[tuple[str, tuple[str, ...]], ...]], ...] = (
    ("listing", (("source", ("backfill",)), ("event", ("listing",)))),
    ("gated", (("pipeline", ("gate", "promote")),)),
    ("merged", (("pipeline", ("post", "periodic", "periodic-*", "release")),)),
    ("reviewed", (("review", ("approved", "merged")),)),
)
_values = attrgetter(*FACTS)
_MAX_REMEMBERED = 10_000
#: Facts whose values never hold a ``/``.
_WITHOUT_SLASH = frozenset({"source", "fork", "auth"})
_log = logging.getLogger(__name__)
Matcher = re.Pattern[str] | PathGlobs


@dataclass(frozen=True, slots=True)
class Rule:
    """A line of the policy: it matches where each of its facts matches one of that fact's globs.

    Attributes:
      name: recorded with the runs that it decides.
      trusted: its decision.
      facts: (fact, globs) in the order of `FACTS`.
    """

    name: str
    trusted: bool
    facts: tuple[tuple[str, tuple[str, ...]], ...]


@dataclass(frozen=True)
class TrustPolicy:
    """Ordered rules; the first that matches decides, and without a match a run is untrusted.

    Attributes:
      rules: in the file's order.
      digest: digest of the rules, not of the file's bytes, 16 hex digits; recorded with each decision.
      globs: the meaning of globs, `FORMER_GLOBS` or `PATH_GLOBS`.
    """

    rules: tuple[Rule, ...]
    digest: str
    _tests: tuple[tuple[tuple[tuple[int, Matcher], ...], Trust], ...] = field(repr=False, compare=False)
    globs: int = FORMER_GLOBS
    _decided: dict[tuple[str, ...], Trust] = field(default_factory=dict, repr=False, compare=False)

    @classmethod
    def of(cls, rules: tuple[Rule, ...], globs: int = FORMER_GLOBS) -> TrustPolicy:
        """Return the policy of these rules."""
        content: Any = [[rule.name, rule.trusted, rule.facts] for rule in rules]
        digest = sha256_json(content if globs == FORMER_GLOBS else {"globs": globs, "rules": content})[:16]
        tests = tuple(
            (
                tuple((FACTS.index(fact), _matcher(of_fact, globs)) for fact, of_fact in rule.facts),
                Trust(rule.trusted, rule.name, digest),
            )
            for rule in rules
        )
        return cls(rules, digest, tests, globs)

    def matcher(self, globs: tuple[str, ...]) -> Matcher:
        """Return what matches one of the globs of a rule, in this policy's meaning."""
        return _matcher(globs, self.globs)

    def crossing(self) -> Iterator[tuple[Rule, str, str]]:
        """Yield rule, fact and glob of each glob that matches more than it would with `PATH_GLOBS`."""
        if self.globs == FORMER_GLOBS:
            for rule in self.rules:
                for fact, globs in rule.facts:
                    for glob in globs:
                        if globs == ("all",) or (fact not in _WITHOUT_SLASH and crosses_slash(glob)):
                            yield rule, fact, glob

    @classmethod
    def parse(cls, text: str, where: str = "the trust policy") -> TrustPolicy:
        """Parse the policy in a TOML text.

        Raises:
          CimlError: one line that names the rule and the key, for anything outside the format.
        """
        return cls.from_json(parse_toml(text, where), where)

    @classmethod
    def from_json(cls, document: Mapping[str, Any], where: str = "the trust policy") -> TrustPolicy:
        """Return the policy of a document with the list ``rule`` and the number ``globs``. Raises as `parse`."""
        for key in document:
            if key not in ("rule", "globs"):
                raise CimlError(
                    f"{where}: unknown key {key!r}; a policy is a list of [[rule]], and globs = {PATH_GLOBS}"
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
        policy = cls.of(rules, globs)
        crossing = [f"rule {rule.name!r}: {fact} {glob!r}" for rule, fact, glob in policy.crossing()]
        if crossing:
            remedy = f"set globs = {PATH_GLOBS} above the first rule: then * ends at '/', and ** does not"
            _log.warning("%s: globs match names with further '/', too: %s; %s", where, ", ".join(crossing), remedy)
        return policy

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
            return cls.parse(Path(__file__).with_name(_DEFAULT).read_text(), f"built-in {_DEFAULT}")
        return cls.from_json(read_toml(path), os.fspath(path))


def _matcher(globs: tuple[str, ...], meaning: int) -> Matcher:
    return PathGlobs(globs) if meaning == PATH_GLOBS else glob_pattern(globs)


def former_policy() -> TrustPolicy:
    """Return the built-in policy until 0.1.0, which decides on stored records of that time without a decision."""
    return TrustPolicy.of(tuple(Rule(name, True, facts) for name, facts in _FORMER))


def _rule(item: dict[str, Any], where: str) -> Rule:
    for key in item:
        if key not in ("name", "trusted", *FACTS):
            raise CimlError(f"{where}: unknown key {key!r}; choose from name, trusted, {', '.join(FACTS)}")
    name = item.get("name")
    if not isinstance(name, str) or not name.strip() or name == NO_RULE:
        raise CimlError(f"{where}: want a name other than {NO_RULE!r}")
    if not isinstance(item.get("trusted"), bool):
        raise CimlError(f"{where} ({name}): set trusted = true or trusted = false")
    facts: list[tuple[str, tuple[str, ...]]] = []
    for fact in FACTS:
        if fact not in item:
            continue
        globs = [item[fact]] if isinstance(item[fact], str) else item[fact]
        if not isinstance(globs, list) or not globs or not all(isinstance(glob, str) for glob in globs):
            raise CimlError(f"{where} ({name}): {fact} must be a glob or a list of globs")
        facts.append((fact, tuple(globs)))
    if not facts and item["trusted"]:
        raise CimlError(f'{where} ({name}): it would trust everything; to do that, set source = ["*"]')
    return Rule(name, item["trusted"], tuple(facts))


def evaluate(policy: TrustPolicy, facts: RunFacts) -> Trust:
    """Return the policy's decision on a run, with the name of the rule that made it (`NO_RULE` where none matched)."""
    values = _values(facts)
    decided = policy._decided
    trust = decided.get(values)
    if trust is None:
        if len(decided) >= _MAX_REMEMBERED:  # facts come from outside: the cache must stay bounded
            decided.clear()
        trust = decided[values] = _evaluate(policy, values)
    return trust


def _evaluate(policy: TrustPolicy, values: tuple[str, ...]) -> Trust:
    for tests, trust in policy._tests:
        if all(pattern.fullmatch(values[index]) for index, pattern in tests):
            return trust
    return Trust(False, NO_RULE, policy.digest)


def evaluate_batch(batch: Batch, policy: TrustPolicy) -> Batch:
    """Judge the pending runs and the settled outcomes of a batch.

    A settled outcome may change a stored run: its outcome, or whether its log is awaited.

    Args:
      batch: unchanged, except for the trust of its pending runs.
      policy: the policy.

    Returns:
      The batch with its settled outcomes judged. Outcomes without a run have no facts, and are unchanged.
    """
    for pending in batch.pending_runs:
        pending.trust = evaluate(policy, pending.mention)
    settled = [
        outcome if outcome.mention is None else outcome.replace(trust=evaluate(policy, outcome.mention))
        for outcome in batch.settled
    ]
    return Batch(batch.covers, batch.messages, batch.pending_runs, settled)
