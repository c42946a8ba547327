"""Trust: the first rule that matches decides; nothing else makes a run trusted."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pytest

from ciml.errors import CimlError
from ciml.events.records import LISTS, UNJUDGED, Batch, Origin, Outcome, PendingRun, RunFacts, Trust
from ciml.events.run_facts import facts_from_run, run_identity
from ciml.runs.known_subjects import STORED_FACTS
from ciml.trust import FACTS as FACTS_IN_ORDER
from ciml.trust import (
    NO_RULE,
    PATH_GLOBS,
    POLICY_VARIABLE,
    Mismatch,
    TrustPolicy,
    evaluate,
    evaluate_batch,
    former_policy,
    trace,
)

ROOT = Path(__file__).parents[2]
SAMPLES, EXAMPLES = ROOT / "integrations", ROOT / "examples"
BUILT_IN = ROOT / "ciml" / "trust_default.toml"
FACTS = RunFacts("zuul~a~1", "a", "job", source="zuul", outcome="success")


#: A run of Zuul's adapter, in a branch of the policy, whose report a user of the broker sent.
ZUULS = {"adapter": "zuul", "auth": "mqtt-user", "branch": "main"}


@pytest.mark.parametrize(
    ("facts", "rule"),
    [
        *(({"pipeline": name}, "gated") for name in ("gate", "promote")),
        *(({"pipeline": name}, "merged") for name in ("post", "periodic", "periodic-weekly")),
        *(({"pipeline": "release", "branch": name}, "released") for name in ("main", "")),
        *(({"pipeline": "check", "review": word}, "reviewed") for word in ("approved", "merged")),
        ({"review": "merged", "auth": "mqtt-certificate"}, "reviewed"),
        ({"pipeline": "gate", "source": "zuul-example-org"}, "gated"),
        ({"pipeline": "gate", "branch": "stable/1"}, "gated"),
        ({"pipeline": "post", "adapter": ""}, "merged"),  # stored by an earlier version
        *(({"source": "backfill", "event": "listing", "pipeline": name}, "listing") for name in ("", "check")),
        ({}, NO_RULE),
        *(({"pipeline": name}, NO_RULE) for name in ("check", "Gate", "gate-not", "xperiodic", "check\ngate", "*")),
        *(({"pipeline": "gate", "branch": name}, NO_RULE) for name in ("mine", "stable/1/mine", "")),
        ({"review": "merged", "branch": "mine"}, NO_RULE),
        *(({"review": word}, NO_RULE) for word in ("partly_approved", "rejected", "approved by me")),
        # A message that calls itself so is no listing.
        *(({"source": "backfill", "event": event}, NO_RULE) for event in ("", "push")),
        ({"source": "other", "event": "listing"}, NO_RULE),
        ({"project": "gate", "branch": "release"}, NO_RULE),
        # The author of a workflow chooses its name.
        *(({"source": name, "pipeline": "gate"}, NO_RULE) for name in ("github", "gitlab", "notzuul")),
        ({"source": "github", "review": "approved"}, NO_RULE),
        ({"review": "approved", "adapter": "gitlab", "auth": "token"}, NO_RULE),
        *(
            ({"pipeline": "gate", "adapter": adapter, "auth": auth}, NO_RULE)
            for adapter in ("", "zuul", "github", "cloudevents", "buildkite")
            for auth in ("hmac-sha256", "mtls")
        ),
        ({"pipeline": "gate", "adapter": "github"}, NO_RULE),
    ],
)
def test_default_policy(facts: dict[str, Any], rule: str) -> None:
    policy = TrustPolicy.load(BUILT_IN)
    trust = evaluate(policy, FACTS.replace(**ZUULS | facts))
    assert trust == Trust(rule in {known.name for known in policy.rules}, rule, policy.digest)
    assert len(policy.digest) == 16


def test_the_sample_of_zuul_is_the_built_in_policy_of_one_source() -> None:
    built_in = BUILT_IN.read_text().replace('source = ["zuul", "zuul-*"]', 'source = ["zuul"]')
    assert TrustPolicy.load(SAMPLES / "trust_zuul.toml").rules == TrustPolicy.parse(built_in).rules


@pytest.mark.parametrize("adapter", ["", "zuul", "github", "cloudevents", "buildkite"])
@pytest.mark.parametrize("facts", [{"pipeline": "gate"}, {"pipeline": "post"}, {"review": "merged"}])
def test_an_event_without_proof_is_untrusted_by_default(adapter: str, facts: dict[str, Any]) -> None:
    policy = TrustPolicy.load(BUILT_IN)
    unproved = FACTS.replace(source="zuul-example-org", branch="main", adapter=adapter, **facts)
    assert evaluate(policy, unproved) == Trust(False, "unproved", policy.digest)


def test_the_policy_for_trials_trusts_own_events_and_no_unproved_delivery() -> None:
    policy = TrustPolicy.load(EXAMPLES / "trust.toml")
    gate = FACTS.replace(pipeline="gate")
    trusted = [evaluate(policy, gate.replace(adapter=adapter)).trusted for adapter in ("", "zuul", "github")]
    assert trusted == [True, False, False]


def test_the_environment_names_the_policy_where_no_other_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    named = tmp_path / "trust.toml"
    named.write_text(POLICY)
    monkeypatch.setenv(POLICY_VARIABLE, str(named))
    assert TrustPolicy.load() == TrustPolicy.parse(POLICY)
    assert TrustPolicy.load(BUILT_IN) != TrustPolicy.load()
    monkeypatch.setenv(POLICY_VARIABLE, "")
    assert TrustPolicy.load() == TrustPolicy.load(BUILT_IN)
    monkeypatch.delenv(POLICY_VARIABLE)
    assert TrustPolicy.load() == TrustPolicy.load(BUILT_IN)
    monkeypatch.setenv(POLICY_VARIABLE, str(tmp_path / "nothing.toml"))
    with pytest.raises(CimlError, match=r"nothing\.toml"):
        TrustPolicy.load()


def test_no_payload_names_its_adapter() -> None:
    run = {"id": "1", "job": "j", "result": "SUCCESS", "end_time": 1795522800, "adapter": "zuul", "auth": "mqtt-user"}
    facts, *_ = facts_from_run(run, run_identity(run, "zuul"), "finished")
    assert (facts.adapter, facts.auth) == ("", "")


def test_digests_of_policies_outlive_new_facts() -> None:
    assert former_policy().digest == "62b027be1fb946d2"
    assert TrustPolicy.parse(POLICY).digest == "6e1eb2dc9bc98a55"
    assert FACTS_IN_ORDER[:6] == ("source", "pipeline", "project", "branch", "event", "review")


@pytest.mark.parametrize("fact", FACTS_IN_ORDER)
def test_a_rule_may_match_any_fact_and_all_of_them_are_stored(fact: str) -> None:
    policy = TrustPolicy.parse(f'[[rule]]\nname = "it"\ntrusted = true\n{fact} = ["this"]')
    assert evaluate(policy, FACTS.replace(**{fact: "this"})).trusted
    assert not evaluate(policy, FACTS).trusted
    assert fact in STORED_FACTS  # of a run that an update concerns: it is judged by these


PROVED = {
    "zuul": FACTS.replace(auth="mqtt-user"),
    "github": FACTS.replace(source="github", auth="hmac-sha256", fork="no"),
    "gitlab": FACTS.replace(source="gitlab", auth="token", fork="no"),
}
PULL = {"github": "pull_request", "gitlab": "merge_request_event"}


@pytest.mark.parametrize(
    ("system", "facts", "rule"),
    [
        ("github", {"event": "push", "branch": "main"}, None),  # it may be a tag
        ("github", {"event": "merge_group", "branch": "main"}, "queue and schedule"),
        ("github", {"event": "schedule", "branch": "main"}, "queue and schedule"),
        ("github", {"event": "pull_request", "branch": "main", "review": "approved"}, None),  # perhaps by a reader
        ("gitlab", {"event": "push", "branch": "main"}, "main branches"),
        ("gitlab", {"event": "merge_request_event", "branch": "main", "review": "approved"}, "reviewed"),
        *(
            (system, facts, rule)
            for system in ("github", "gitlab")
            for facts, rule in [
                ({"event": "push", "branch": "main", "review": "pushed"}, "main branches"),
                ({"event": "push", "branch": "wip", "review": "pushed"}, None),
                *(({"event": "push", "branch": "main", "fork": fork}, "forks") for fork in ("yes", "")),
                ({"event": "push", "branch": "main", "auth": ""}, None),
                ({"event": PULL[system], "branch": "main"}, None),
                ({"event": PULL[system], "branch": "main", "review": "merged"}, "reviewed"),
                *(({"event": PULL[system], "branch": name, "review": "merged"}, None) for name in ("mine", "")),
                ({"event": PULL[system], "review": "approved", "fork": "yes"}, "forks"),
                ({"pipeline": "gate", "review": "merged"}, None),
            ]
        ),
    ],
)
def test_sample_policies(system: str, facts: dict[str, str], rule: str | None) -> None:
    policy = TrustPolicy.load(SAMPLES / f"trust_{system}.toml")
    trust = evaluate(policy, PROVED[system].replace(**facts))
    assert trust.rule == (rule or NO_RULE)
    assert trust.trusted == (rule not in (None, "forks", "unproved"))
    for other in PROVED.keys() - {system}:
        assert not evaluate(policy, PROVED[other].replace(pipeline="gate", review="merged")).trusted


POLICY = """
[[rule]]
name = "no forks"
trusted = false
project = ["*-fork", "tmp/*"]

[[rule]]
name = "main"
trusted = true
source = "zuul"
branch = ["main", "stable/*"]
project = ["acme/*"]
"""


@pytest.mark.parametrize(
    ("facts", "expected"),
    [
        ({"project": "acme/a", "branch": "main"}, (True, "main")),
        ({"project": "acme/a", "branch": "stable/1"}, (True, "main")),
        ({"project": "acme/a-fork", "branch": "main"}, (False, "no forks")),
        ({"project": "acme/a", "branch": "mainly"}, (False, NO_RULE)),
        ({"project": "acme/a", "branch": "main", "source": "zuul2"}, (False, NO_RULE)),
    ],
)
def test_first_match_decides(facts: dict[str, Any], expected: tuple[bool, str]) -> None:
    trust = evaluate(TrustPolicy.parse(POLICY), FACTS.replace(**facts))
    assert (trust.trusted, trust.rule) == expected


def test_digest_is_of_the_rules_and_their_order() -> None:
    policy = TrustPolicy.parse(POLICY)
    assert TrustPolicy.parse("# a word\n" + POLICY.replace('"zuul"', '[ "zuul" ]')).digest == policy.digest
    assert TrustPolicy.of(policy.rules[::-1]).digest != policy.digest
    assert TrustPolicy.parse(POLICY.replace("main", "MAIN", 1)).digest != policy.digest
    assert pickle.loads(pickle.dumps(policy)) == policy
    assert evaluate(TrustPolicy.parse(""), FACTS) == Trust(False, NO_RULE, TrustPolicy.parse("").digest)


RULE = "[[rule]]\nname='a'\ntrusted=true\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("rule = 3", "write rules as"),
        ("[rule]\nname='a'", "write rules as"),
        ("rules = []", "unknown key 'rules'"),
        (f"{RULE}pipelines=['gate']", "rule 1: unknown key 'pipelines'; choose from name"),
        ("[[rule]]\ntrusted=true\npipeline=['gate']", "rule 1: want a name other than 'no rule'"),
        ("[[rule]]\nname='no rule'\ntrusted=true\npipeline=['gate']", "rule 1: want a name other than 'no rule'"),
        ("[[rule]]\nname='a'\npipeline=['gate']", "set trusted = true"),
        ("[[rule]]\nname='a'\ntrusted='yes'\npipeline=['gate']", "set trusted = true"),
        (f"{RULE}pipeline=[]", "pipeline must be a glob or a list"),
        (f"{RULE}pipeline=[3]", "pipeline must be a glob or a list"),
        (RULE, "it would trust everything"),
        ("[[rule]]\nname='a'\ntrusted=false\n" * 2, "two rules have the name 'a'"),
        ("= 3", "Invalid"),
        ("# \xe9", "UTF-8"),
    ],
)
def test_mistakes_are_one_line(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "trust.toml"
    path.write_text(text, encoding="latin-1")
    with pytest.raises(CimlError) as caught:
        TrustPolicy.load(path)
    assert message in str(caught.value)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    if text.isascii():
        with pytest.raises(CimlError, match=r"^a policy\b") as parsed:
            TrustPolicy.parse(text, "a policy")
        assert message in str(parsed.value)


def test_every_run_and_every_outcome_of_a_batch_is_judged() -> None:
    policy = TrustPolicy.load()
    expected = [Trust(True, "gated", policy.digest), Trust(False, NO_RULE, policy.digest)]
    facts = [FACTS.replace(pipeline=name) for name in ("gate", "check")]
    pending_runs = [PendingRun(Origin("t", 0, 1), "k", each) for each in facts * 3]
    settled = [Outcome(kind, Origin("t", 0, 1), mention=each) for kind in LISTS for each in facts]
    without_run = Outcome("dead_letter", Origin("t", 0, 1))
    judged = evaluate_batch(Batch(None, [], pending_runs, [*settled, without_run]), policy)
    assert [pending.trust for pending in judged.pending_runs] == expected * 3
    assert [outcome.trust for outcome in judged.settled] == expected * len(LISTS) + [UNJUDGED]


@pytest.mark.parametrize(
    ("project", "source", "matching"),
    [
        ("acme/a-fork", "zuul", ["no forks", "main", "own"]),
        ("acme/a-fork", "github", ["no forks", "own"]),
        ("acme/a", "zuul", ["main", "own"]),
        ("other", "github", []),
    ],
)
def test_a_trace_has_all_rules_that_match_and_the_one_that_decides(
    project: str, source: str, matching: list[str]
) -> None:
    policy = TrustPolicy.parse(POLICY + '[[rule]]\nname = "own"\ntrusted = false\nproject = ["acme/*"]\n')
    facts = FACTS.replace(project=project, source=source, branch="main")
    traces = trace(policy, facts)
    assert [rule.rule for rule in traces if not rule.mismatches] == matching
    assert [rule.rule for rule in traces if rule.decides] == matching[:1]
    assert evaluate(policy, facts).rule == (matching or [NO_RULE])[0]


def test_what_is_remembered_stays_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ciml.trust._MAX_REMEMBERED", 100)
    policy = TrustPolicy.load()
    for number in range(205):
        assert not evaluate(policy, FACTS.replace(branch=str(number))).trusted
    assert len(policy._decided) <= 100
    assert evaluate(policy, FACTS) is evaluate(policy, FACTS)


RELEASES = """
[[rule]]
name = "releases"
trusted = true
source = ["zuul-*"]
branch = ["main", "release/*"]
project = ["octo/**", "w[!x]"]
"""


def trusted(policy: TrustPolicy, branch: str, project: str = "octo/widget") -> bool:
    return evaluate(policy, FACTS.replace(source="zuul-a", branch=branch, project=project)).trusted


def test_the_meaning_of_globs(caplog: pytest.LogCaptureFixture) -> None:
    """In a policy with ``globs = 2``, a star ends at a slash; one without keeps its meaning, and is reported."""
    policy = TrustPolicy.parse(RELEASES, "trust.toml")
    assert policy.digest == TrustPolicy.of(policy.rules).digest == "b5cee73d5852ac37"
    assert TrustPolicy.parse(f"globs = 1\n{RELEASES}").digest == policy.digest
    assert [trusted(policy, branch) for branch in ("release/1", "release/1/PR-5")] == [True, True]
    assert caplog.records[0].getMessage() == (
        "trust.toml: globs match names with further '/', too: rule 'releases': project 'w[!x]', rule 'releases': "
        "branch 'release/*'; set globs = 2 above the first rule: then * ends at '/', and ** does not"
    )
    caplog.clear()
    TrustPolicy.parse(f'{RULE}source = "all"')
    assert "rule 'a': source 'all'" in caplog.text
    caplog.clear()
    strict = TrustPolicy.parse(f"globs = 2\n{RELEASES}")
    assert strict.digest == "38ca10270b0feee8"
    branches = ["main", "release/1", "release/", "release/1/PR-5", "release/1/2", "Main"]
    assert [branch for branch in branches if trusted(strict, branch)] == branches[:3]
    assert [trusted(strict, "main", name) for name in ("octo/a/b", "wy", "w/")] == [True, True, False]
    facts = FACTS.replace(source="zuul-a", branch="release/1/2", project="octo/widget")
    mismatch = Mismatch("branch", "release/1/2", ("main", "release/*"))
    assert [found.mismatches for found in trace(strict, facts)] == [(mismatch,)]
    for path in (None, *SAMPLES.glob("trust_*.toml")):
        assert TrustPolicy.load(path).globs == PATH_GLOBS
    assert caplog.records == []
    for globs in ("3", "0", "true", "2.0", '"2"', "[]"):
        with pytest.raises(CimlError, match="the trust policy: globs must be 1 or 2, not"):
            TrustPolicy.parse(f"globs = {globs}")
