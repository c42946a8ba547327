"""``ciml trust``: check a trust policy on the stored runs, put it in force, and explain the trust of a run."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

import click

from ciml.cli.command import make_command
from ciml.cli.options import Data, Json, Signed
from ciml.cli.output import minute_of, print_lines, print_table, print_warnings
from ciml.errors import UnknownRunError
from ciml.options import TrustOptions, argument, flag, option

if TYPE_CHECKING:
    from ciml.stored_trust import StoredPolicy
    from ciml.training.exclusions import StoredExclusion
    from ciml.training.policy_effect import PolicyEffect
    from ciml.trust import Decision, Review, RuleTrace

#: Largest number of rows of a printed table.
_PLACES = 20


class CheckOptions(Data, Json):
    """Options of ``ciml trust check``.

    Attributes:
      runs: List the runs whose trust would change.
      json: JSON output; with --runs a line for each run before it.
    """

    policy: str = argument("POLICY", click.Path(exists=True, dir_okay=False))
    runs: bool = flag()


@make_command("check")
def check(options: CheckOptions) -> None:
    """Show the changes that a POLICY would make.

    It evaluates the policy on every stored run, with the facts that later events reported, and counts the runs whose
    trust would differ from the last decision: by rule, and by source and job. By data set and class, it counts the runs
    that would join and leave the next training snapshots, and lists the versions of models that learned from these.

    \b
    Example:
      ciml trust check trust.toml --data-path data
      ciml trust check policy.toml --runs --json --data-path data > changed.jsonl
    """
    from ciml.runs.latest_runs import latest_runs
    from ciml.runs.state import open_raw
    from ciml.stored_trust import policy_of
    from ciml.training.policy_effect import policy_effect
    from ciml.trust import Review, TrustPolicy, review

    policy = TrustPolicy.load(options.policy)
    log, state = open_raw(options.root.raw)
    result = Review()
    decided = ((run.facts, run.trust) for run in latest_runs(log, state))
    for run in review(decided, policy, result):
        if options.runs and options.json:
            click.echo(json.dumps({**run._asdict(), "before": run.before._asdict(), "after": run.after._asdict()}))
        elif options.runs:
            decisions = f"{_decision_text(run.before)} -> {_decision_text(run.after)}"
            print_lines([f"{run.run_id}  {run.build_name}  {decisions}"])
    effect = policy_effect(options.root, policy_of(options.root).current(), policy)
    if options.json:
        value = {"policy": policy.digest, **result.to_json(), **effect.to_json()}
        click.echo(json.dumps(value, indent=None if options.runs else 2))
    else:
        _print_review(result)
        _print_effect(effect)


def _decision_text(decision: Decision) -> str:
    return f"{'trusted' if decision.trusted else 'not trusted'} ({decision.rule})"


def _print_review(review: Review) -> None:
    changed = sum(review.rules.values())
    click.echo(
        f"{review.trusted:,} of {review.runs:,} runs are trusted; the policy would trust {review.trusted_after:,} "
        f"and change {changed:,}"
    )
    if not changed:
        return
    rules = [
        (_decision_text(before), _decision_text(after), number)
        for (before, after), number in review.rules.most_common()
    ]
    print_table(("from", "to", "runs"), rules, title="By rule")
    places = [
        (source, job, "trusted" if trusted else "not trusted", number)
        for (source, job, trusted), number in review.places.most_common(_PLACES)
    ]
    print_table(("source", "job", "to", "runs"), places, title="By source and job")
    if (more := len(review.places) - _PLACES) > 0:
        click.echo(f"and {more:,} more; --json has all")


def _print_effect(effect: PolicyEffect) -> None:
    rows = []
    for change, number in effect.changes.most_common():
        word = "joins" if change.joins else "leaves"
        rows.append((change.dataset, change.label, change.role, word, change.before, change.after, number))
    if rows:
        headings = ("data set", "class", "role", "change", "from", "to", "runs")
        print_table(headings, rows[:_PLACES], title="Next training snapshots")
    else:
        click.echo("the next training snapshots stay the same")
    if (more := len(rows) - _PLACES) > 0:
        click.echo(f"and {more:,} more; --json has all")
    for version in effect.versions:
        labels = ", ".join(version.labels) or ("withdrawn" if version.withdrawn else "not served")
        learned = f"learned from {len(version.runs):,} runs that leave"
        if version.fault:
            learned = f"cannot determine whether it learned from runs that leave: {version.fault}"
        print_lines([f"model {version.model} version {version.version} ({labels}) {learned}"])
    if any(version.labels for version in effect.versions):
        click.echo("served versions stay until the next push; ciml purge withdraws them")
    print_warnings(f"data set {name}: cannot be compared: {fault}" for name, fault in effect.faults.items())


class ExplainOptions(TrustOptions, Data, Json):
    """Options of ``ciml trust explain``."""

    run_id: str = argument()


@make_command("explain")
def explain(options: ExplainOptions) -> None:
    """Explain why a run is trusted or not.

    It shows the facts of RUN_ID and their origin, the decisions at ingestion and at later updates, and the present
    result of each rule of the policy, with the facts that do not match.

    \b
    Example:
      ciml trust explain zuul~5f0c~1 --data-path data
      ciml trust explain github~9013~1 --trust-policy trust.toml --data-path data
    """
    from ciml.events.records import RunFacts
    from ciml.runs.latest_runs import TRUST_CHANGE, entries_of, row_of
    from ciml.runs.state import open_raw
    from ciml.trust import FACTS, evaluate, trace

    run_id = options.run_id
    policy = options.trust_of(options.root).current()
    raw = options.root.raw
    log, state = open_raw(raw)
    entries = entries_of(log, state.version, run_id)
    if not entries:
        raise UnknownRunError(f"no run {run_id!r} in {raw.url()}; list the runs by ciml runs list")
    row = row_of(entries) or entries[-1]
    facts = RunFacts.from_json(row.record["mention"])
    joined = state.index.subjects.join(facts)
    decisions = [{"version": row.version, "by": "ingestion", **row.record.get("trust", {})}]
    decisions += [
        {"version": entry.version, "by": "update", **entry.record["trust"]}
        for entry in entries
        if entry.kind == TRUST_CHANGE and entry.version >= row.version
    ]
    explanation = {
        "run_id": run_id,
        "stored": row.kind in ("run", "reclaim"),
        "facts": {name: {"own": getattr(facts, name), "joined": getattr(joined, name)} for name in FACTS},
        "subjects": list(facts.subjects),
        "decisions": decisions,
        "now": evaluate(policy, joined).to_json(),
    }
    rules = trace(policy, joined)
    traces = [{**rule._asdict(), "mismatches": [mismatch._asdict() for mismatch in rule.mismatches]} for rule in rules]
    options.show(explanation, partial(_print_explained, rules), lambda facts: {**facts, "rules": traces})


def _print_explained(rules: list[RuleTrace], explanation: Mapping[str, Any]) -> None:
    rows = []
    for name, values in explanation["facts"].items():
        origin = ""
        if values["joined"]:
            origin = "its event" if values["own"] == values["joined"] else "an update"
        rows.append((name, values["joined"], origin))
    print_table(("fact", "value", "from"), rows, title=f"Facts of {explanation['run_id']}")
    for decision in explanation["decisions"]:
        word = "trusted" if decision.get("trusted") else "not trusted"
        rule = decision.get("rule") or "no decision stored"
        print_lines([f"{decision['by']}: {word} ({rule}), version {decision['version']}"])
    now = explanation["now"]
    word = "trusted" if now["trusted"] else "not trusted"
    print_lines([f"now: {word} ({now['rule']}), policy {now['policy']}"])
    rows = []
    for rule in rules:
        missed = "; ".join(
            f"{mismatch.fact} {mismatch.value!r} is not {' or '.join(mismatch.globs)!r}" for mismatch in rule.mismatches
        )
        reason = missed or ("it decides: the first that matches" if rule.decides else "it matches too, after another")
        decision = "trusted" if rule.trusted else "not trusted"
        rows.append((rule.rule, "-" if rule.mismatches else decision, reason))
    print_table(("rule", "says", "because"), rows, title="Rules")


class ApplyOptions(Data, Signed):
    """Options of ``ciml trust apply``.

    Attributes:
      reset: Return to the policy of each process instead.
      reason: Why, for readers of the history.
    """

    policy: str | None = argument("[POLICY]", click.Path(exists=True, dir_okay=False), required=False)
    reset: bool = flag()
    reason: str = option(metavar="TEXT", required=True)


@make_command("apply")
def apply(options: ApplyOptions) -> None:
    """Put a POLICY in force for a data root.

    Every command and service of the data root judges by it from now on; running services reread it within seconds.
    The file itself is not needed any more. The effect on training is printed; ciml trust check shows it beforehand.

    \b
    Example:
      ciml trust apply trust.toml --reason "GitHub was connected" --data-path data
      ciml trust apply --reset --reason "back to the built-in policy" --data-path data
    """
    from ciml.settings import read_toml
    from ciml.stored_trust import apply_policy, policy_of
    from ciml.training.policy_effect import policy_effect

    if (options.policy is None) == (not options.reset):
        raise click.UsageError("give a POLICY, or --reset")
    document = None if options.policy is None else read_toml(options.policy)
    before = policy_of(options.root).current()
    stored = apply_policy(options.root.trust, document, options.signed_by(), options.reason)
    if stored is None:
        click.echo("this policy is in force already")
        return
    print_lines([_stored_line(stored)])
    _print_effect(policy_effect(options.root, before, policy_of(options.root).current()))


def _stored_line(stored: StoredPolicy) -> str:
    applied = minute_of(stored.time_us)
    rules = "the policy of each process"
    if stored.policy is not None:
        names = [rule.name for rule in stored.policy.rules]
        names += [f"cap {key} {share:g}" for key, share in stored.policy.caps]
        names += ["quarantine"] if stored.policy.quarantine else []
        rules = f"policy {stored.policy.digest} ({', '.join(names)})"
    return f"{stored.number:>4}  {applied}  {stored.author}: {stored.reason}: {rules}"


class HistoryOptions(Data, Json):
    """Options of ``ciml trust history``.

    Attributes:
      json: JSON output, an array of all policies with their rules.
    """


@make_command("history")
def history(options: HistoryOptions) -> None:
    """List the policies of a data root.

    The last one is in force.

    \b
    Example:
      ciml trust history --data-path data
    """
    from ciml.stored_trust import read_policies

    def text(policies: list[StoredPolicy]) -> None:
        nothing = "no policy; each process judges by its own: see --trust-policy and CIML_TRUST_POLICY"
        print_lines(map(_stored_line, policies) if policies else [nothing])

    policies = read_policies(options.root.trust).policies
    options.show(policies, text, lambda policies: [stored.to_json() for stored in policies])


class QuarantineOptions(Data, Json):
    """Options of ``ciml trust quarantine list``.

    Attributes:
      json: JSON output, an array of all quarantined runs.
    """


@make_command("list")
def list_quarantine(options: QuarantineOptions) -> None:
    """List the runs in quarantine.

    \b
    Example:
      ciml trust quarantine list --data-path data
    """
    from ciml.training.quarantine import in_quarantine

    def text(held: list[StoredExclusion]) -> None:
        lines = [f"{entry.exclusion.run_id}  {minute_of(entry.time_us)}  {entry.exclusion.reason}" for entry in held]
        print_lines(lines or ["no run is in quarantine"])

    options.show(in_quarantine(options.root.exclusions), text, lambda held: [stored.to_json() for stored in held])


class ReleaseOptions(Data, Signed):
    """Options of ``ciml trust quarantine release``.

    Attributes:
      reason: Why they may be learned from.
    """

    reason: str = option(metavar="TEXT", required=True)
    runs: tuple[str, ...] = argument("RUN…", many=True)


@make_command("release")
def release_command(options: ReleaseOptions) -> None:
    """Release runs from quarantine.

    Later trainings may learn from each RUN, and it is not quarantined again. ciml exclude --run reverts a release.

    \b
    Example:
      ciml trust quarantine release zuul~5f0c~1 --reason "a new test" --data-path data
    """
    from ciml.training.quarantine import release

    released = release(options.root.exclusions, options.runs, author=options.signed_by(), reason=options.reason)
    print_lines(f"released {stored.exclusion.run_id}: {stored.exclusion.reason}" for stored in released)


@click.group("quarantine", commands=[list_quarantine, release_command])
def quarantine() -> None:
    """List and release trusted runs that training leaves out.

    A policy with quarantine = true excludes runs that are unlike the others of their job and class.

    \b
    Example:
      ciml trust quarantine list --data-path data
      ciml trust quarantine release zuul~5f0c~1 --reason "a new test" --data-path data
    """


@click.group("trust", commands=[check, apply, history, explain, quarantine])
def command() -> None:
    """Check and apply trust policies, explain a run.

    A trust policy says which runs may train a model. A data root has one, which every command and service uses.

    \b
    Example:
      ciml trust check trust.toml --data-path data
      ciml trust apply trust.toml --reason "GitHub was connected" --data-path data
      ciml trust explain zuul~5f0c~1 --data-path data
    """
