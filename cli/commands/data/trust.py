"""``ciml trust``: what a trust policy says of the stored runs."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import click

from ciml.cli.options import data_path_option, trust_policy_option
from ciml.cli.tables import print_table
from ciml.errors import UnknownRunError

if TYPE_CHECKING:
    from ciml.runs.latest_runs import ChangedRun, Decision, Review, RuleTrace

_PLACES = 20


@click.group("trust")
def command() -> None:
    """Check a trust policy, explain a run's trust.

    A trust policy says which runs may train a model. Both commands only read; a policy takes effect by --trust-policy
    of the commands that ingest and train.

    \b
    Example:
      ciml trust check trust.toml --data-path data
      ciml trust explain zuul~5f0c~1 --data-path data
    """


@command.command("check")
@click.argument("policy_file", metavar="POLICY", type=click.Path(exists=True, dir_okay=False))
@click.option("--runs", "with_runs", is_flag=True, help="List the runs whose trust would change.")
@data_path_option()
@click.option("--json", "as_json", is_flag=True, help="JSON output; with --runs a line for each run before it.")
def check(policy_file: str, with_runs: bool, data_path: str, as_json: bool) -> None:
    """Show what a POLICY would change.

    It evaluates the policy on every stored run, with the facts that later events reported, and counts the runs whose
    trust would differ from the last decision: by rule, and by source and job.

    \b
    Example:
      ciml trust check trust.toml --data-path data
      ciml trust check policy.toml --runs --json --data-path data > changed.jsonl
    """
    from ciml.data_root import DataRoot
    from ciml.runs.latest_runs import Review, latest_runs, review
    from ciml.runs.state import open_raw
    from ciml.trust import TrustPolicy

    policy = TrustPolicy.load(policy_file)
    log, state = open_raw(DataRoot.open(data_path).raw)
    result = Review()
    for run in review(latest_runs(log, state), policy, result):
        if with_runs:
            click.echo(json.dumps(_changed_json(run)) if as_json else _changed_line(run))
    if as_json:
        value = {"policy": policy.digest, **result.to_json()}
        click.echo(json.dumps(value, indent=None if with_runs else 2))
    else:
        _print_review(result)


def _changed_json(run: ChangedRun) -> dict[str, Any]:
    return {**run._asdict(), "before": run.before._asdict(), "after": run.after._asdict()}


def _changed_line(run: ChangedRun) -> str:
    return f"{run.run_id}  {run.build_name}  {_words(run.before)} -> {_words(run.after)}"


def _words(decision: Decision) -> str:
    return f"{'trusted' if decision.trusted else 'not trusted'} ({decision.rule})"


def _print_review(review: Review) -> None:
    changed = sum(review.rules.values())
    click.echo(
        f"{review.trusted:,} of {review.runs:,} runs are trusted; the policy would trust {review.trusted_after:,} "
        f"and change {changed:,}"
    )
    if not changed:
        return
    rules = [(_words(before), _words(after), f"{number:,}") for (before, after), number in review.rules.most_common()]
    print_table(("from", "to", "runs"), rules, title="By rule", right=["runs"])
    places = [
        (source, job, "trusted" if trusted else "not trusted", f"{number:,}")
        for (source, job, trusted), number in review.places.most_common(_PLACES)
    ]
    print_table(("source", "job", "to", "runs"), places, title="By source and job", right=["runs"])
    if (more := len(review.places) - _PLACES) > 0:
        click.echo(f"and {more:,} more; --json has all")


@command.command("explain")
@click.argument("run_id")
@trust_policy_option
@data_path_option()
@click.option("--json", "as_json", is_flag=True, help="JSON output.")
def explain(run_id: str, trust_policy: str | None, data_path: str, as_json: bool) -> None:
    """Explain why a run is trusted or not.

    It shows the facts of RUN_ID and where they come from, the decision when the run was ingested and those by later
    updates, and what each rule of the policy says now, with the facts that do not match.

    \b
    Example:
      ciml trust explain zuul~5f0c~1 --data-path data
      ciml trust explain github~9013~1 --trust-policy trust.toml --data-path data
    """
    from ciml.data_root import DataRoot
    from ciml.events.records import RunFacts
    from ciml.runs.latest_runs import TRUST_CHANGE, entries_of, row_of, trace
    from ciml.runs.state import open_raw
    from ciml.trust import FACTS, TrustPolicy, evaluate

    policy = TrustPolicy.load(trust_policy)
    raw = DataRoot.open(data_path).raw
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
    if as_json:
        explanation["rules"] = [
            {**rule._asdict(), "mismatches": [mismatch._asdict() for mismatch in rule.mismatches]} for rule in rules
        ]
        click.echo(json.dumps(explanation, indent=2))
    else:
        _print_explained(explanation, rules)


def _print_explained(explanation: Mapping[str, Any], rules: list[RuleTrace]) -> None:
    rows = []
    for name, values in explanation["facts"].items():
        origin = "" if not values["joined"] else "its event" if values["own"] == values["joined"] else "an update"
        rows.append((name, values["joined"], origin))
    print_table(("fact", "value", "from"), rows, title=f"Facts of {explanation['run_id']}")
    for decision in explanation["decisions"]:
        word = "trusted" if decision.get("trusted") else "not trusted"
        rule = decision.get("rule") or "no decision stored"
        click.echo(f"{decision['by']}: {word} ({rule}), version {decision['version']}")
    word = "trusted" if explanation["now"]["trusted"] else "not trusted"
    click.echo(f"now: {word} ({explanation['now']['rule']}), policy {explanation['now']['policy']}")
    rows = []
    for rule in rules:
        missed = "; ".join(
            f"{mismatch.fact} {mismatch.value!r} is not {' or '.join(mismatch.globs)!r}" for mismatch in rule.mismatches
        )
        reason = missed or ("it decides: the first that matches" if rule.decides else "it matches too, after another")
        says = "-" if rule.mismatches else "trusted" if rule.trusted else "not trusted"
        rows.append((rule.rule, says, reason))
    print_table(("rule", "says", "because"), rows, title="Rules")
