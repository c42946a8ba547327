"""Decisions about models: the commands of ``ciml models`` by which people decide and read the ledger; ``ciml gate``."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import click

from ciml.cli.command import make_command
from ciml.cli.options import Data, Json, JsonLines, Signed
from ciml.cli.output import minute_of, print_columns, print_lines, print_table
from ciml.errors import CimlError
from ciml.options import TrustOptions, argument, flag, option

if TYPE_CHECKING:
    from ciml.data_root import DataRoot
    from ciml.serving.ledger import Entry
    from ciml.serving.registry import Candidate, Decision, Registry, Signature


class DecisionOptions(Data, Signed):
    """Options of a decision about a model.

    Attributes:
      reason: Why, for readers of the history.
    """

    reason: str = option(metavar="TEXT", required=True)

    def signature(self) -> Signature:
        """Return author and reason."""
        from ciml.serving.registry import Signature

        return Signature(self.signed_by(), self.reason)


class ModelDecisionOptions(DecisionOptions):
    """Options of a decision about a whole model."""

    model: str = argument()


def _registry(root: DataRoot, model: str) -> Registry:
    """Return the registry of a model. Raises `CimlError` for an unknown one."""
    from ciml.serving.registries import known_registries

    return known_registries(root, model)[model]


class RollbackOptions(DecisionOptions):
    """Options of ``ciml models rollback``.

    Attributes:
      version: Version to serve. [default: the previous one]
      label: Label to move.
      reason: Why, for readers of the history.
    """

    model: str = argument()
    version: int | None = option(kind="count")
    label: str = option("stable")
    reason: str = option("no reason was given", metavar="TEXT")


@make_command("rollback")
def rollback_model(options: RollbackOptions) -> None:
    """Move a label to an earlier version.

    Later versions are withdrawn until a rollback names them with --version.

    \b
    Example:
      ciml models rollback provider --reason "worse since Monday" --data-path data
      ciml models rollback provider --version 3 --data-path data
    """
    from ciml.serving.ledger import rollback

    signed = options.signature()
    moved = rollback(options.root, options.model, options.version, label=options.label, signed=signed)
    click.echo(f"{options.model}: {moved.label} = {moved.version}")


class PromoteOptions(DecisionOptions):
    """Options of ``ciml models promote``.

    Attributes:
      version: Version to label.
      label: Label to move.
    """

    model: str = argument()
    version: int = option(kind="count", required=True)
    label: str = option("stable")


@make_command("promote")
def promote_version(options: PromoteOptions) -> None:
    """Give a pushed version a label.

    \b
    Example:
      ciml models promote provider --version 7 --reason "good as canary for a week" --data-path data
    """
    from ciml.serving.ledger import promote

    moved = promote(_registry(options.root, options.model), options.version, options.signature(), label=options.label)
    click.echo(f"{options.model}: {moved.label} = {moved.version}")


class UnlabelOptions(DecisionOptions):
    """Options of ``ciml models unlabel``.

    Attributes:
      label: Label to remove; not stable.
    """

    model: str = argument()
    label: str = option(required=True)


@make_command("unlabel")
def remove_label(options: UnlabelOptions) -> None:
    """Remove a label from its version.

    A canary or a shadow without the label predicts no more. Its version stays pushed, and can be promoted later.

    \b
    Example:
      ciml models unlabel provider --label shadow --reason "not needed" --data-path data
    """
    from ciml.serving.ledger import unlabel

    version = unlabel(_registry(options.root, options.model), options.label, options.signature())
    click.echo(f"{options.model}: version {version} is no longer {options.label}")


class WithdrawOptions(DecisionOptions):
    """Options of ``ciml models withdraw``."""

    model: str = argument()
    versions: tuple[int, ...] = argument("VERSION…", "count", many=True)


@make_command("withdraw")
def withdraw_versions(options: WithdrawOptions) -> None:
    """Take versions out of service.

    A label that names one of them moves to the highest lower version that is not withdrawn; without one, nothing is
    served under it. No refresh restores a withdrawn version.

    \b
    Example:
      ciml models withdraw provider 6 7 --reason "learned from a poisoned source" --data-path data
    """
    from ciml.serving.ledger import withdraw

    if not options.versions:
        raise click.UsageError("name at least one version")
    moved = withdraw(_registry(options.root, options.model), list(options.versions), options.signature())
    click.echo(f"{options.model}: withdrawn: {', '.join(map(str, options.versions))}")
    for label, version in moved.items():
        now = "nothing; train a model by ciml refresh" if version is None else version
        click.echo(f"{options.model}: {label} = {now}")


@make_command("hold")
def hold_model(options: ModelDecisionOptions) -> None:
    """Keep the stable version in service.

    Refreshes go on, and their candidates are recorded. None is pushed as stable until ciml models release.

    \b
    Example:
      ciml models hold provider --reason "release week" --data-path data
    """
    from ciml.serving.ledger import hold

    registry = _registry(options.root, options.model)
    hold(registry, options.signature())
    click.echo(f"{options.model}: version {registry.state.champion} is held")


@make_command("release")
def release_model(options: ModelDecisionOptions) -> None:
    """End a hold.

    The next refresh pushes the last candidate, if it was blessed meanwhile.

    \b
    Example:
      ciml models release provider --reason "the release is out" --data-path data
    """
    from ciml.serving.ledger import release

    release(_registry(options.root, options.model), options.signature())
    click.echo(f"{options.model}: released")


class HistoryOptions(Data, JsonLines):
    """Options of ``ciml models history``."""

    model: str = argument()


@make_command("history")
def show_history(options: HistoryOptions) -> None:
    """List the history of a model.

    These are its candidates, the decisions of the gate, pushes, and the decisions of people, from the oldest.

    \b
    Example:
      ciml models history provider --data-path data
    """
    from ciml.serving.ledger import Entry, history

    entries = history(_registry(options.root, options.model))
    options.show_all(entries, _print_entries, Entry.to_json)


def _print_entries(entries: list[Entry]) -> None:
    print_table(("time", "what", "by", "why"), [tuple(_row(entry)) for entry in entries])


def _row(entry: Entry) -> Iterator[str]:
    yield minute_of(entry.time_us)
    version = "" if entry.version is None else f" version {entry.version}"
    withdrawn = f", withdrawn: {', '.join(map(str, entry.withdrawn))}" if entry.withdrawn else ""
    labels = "".join(f", {label} = {number}" for label, number in entry.labels.items())
    removed = "".join(f", no {label}" for label in entry.removed)
    yield f"{entry.action}{version}{' ' + entry.candidate if entry.candidate else ''}{labels}{withdrawn}{removed}"
    yield entry.author
    yield "; ".join(entry.reasons)


class ShowOptions(Data, Json):
    """Options of ``ciml models show``."""

    model: str = argument()
    version: int = argument("VERSION", "count")


@make_command("show")
def show_version(options: ShowOptions) -> None:
    """Show all that is recorded of a version.

    These are data set, snapshot, experiment, version of ciml, figures, the gate's decision and the files' digest.

    \b
    Example:
      ciml models show provider 7 --data-path data
    """
    from ciml.serving.ledger import facts_of_version

    registry = _registry(options.root, options.model)
    options.show(facts_of_version(registry, options.version), _print_facts)


def _print_facts(facts: Mapping[str, Any]) -> None:
    print_columns([(name, str(value)) for name, value in _flat(facts)])


class DiffOptions(Data, Json):
    """Options of ``ciml models diff``.

    Attributes:
      all: Equal values too.
    """

    model: str = argument()
    version: int = argument("VERSION", "count")
    other: int = argument("OTHER", "count")
    all: bool = flag()


@make_command("diff")
def diff_versions(options: DiffOptions) -> None:
    """Compare two versions of a model.

    \b
    Example:
      ciml models diff provider 6 7 --data-path data
    """
    from ciml.serving.ledger import facts_of_version

    registry = _registry(options.root, options.model)
    first, second = (dict(_flat(facts_of_version(registry, number))) for number in (options.version, options.other))
    rows = [(name, first.get(name), second.get(name)) for name in dict.fromkeys((*first, *second))]
    differing = [row for row in rows if options.all or row[1] != row[2]]

    def text(rows: list[tuple[str, Any, Any]]) -> None:
        headings = ("", f"version {options.version}", f"version {options.other}")
        print_table(headings, [(name, _text(left), _text(right)) for name, left, right in rows])

    options.show(differing, text, lambda rows: {name: values for name, *values in rows})


def _text(value: Any) -> str:
    return "" if value is None else str(value)


def _flat(facts: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, Any]]:
    """Yield (name, value) of nested facts, with dotted names."""
    for name, value in facts.items():
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{before}{name}.")
        else:
            yield f"{before}{name}", value


class CanaryOptions(Data, TrustOptions, Json):
    """Options of ``ciml models canary`` and ``ciml models shadow``.

    Attributes:
      settle: Promote or withdraw the version, if that is decided.
      margin: By how much less often right than the stable version it may be.
    """

    model: str = argument()
    settle: bool = flag()
    margin: float | None = option(kind="share")


@make_command("canary")
def show_canary(options: CanaryOptions) -> None:
    """Compare a model's canary with its stable version.

    The canary predicts a share of the changes (ciml predict stream --canary-share). The test stays valid however often
    it is looked at.

    \b
    Example:
      ciml models canary provider --data-path data
      ciml models canary provider --settle --data-path data
    """
    _show_comparison(options, "canary")


@make_command("shadow")
def show_shadow(options: CanaryOptions) -> None:
    """Compare a model's shadow with its stable version.

    The shadow predicts every run, and its answers are not published (ciml predict stream --label shadow). The test
    stays valid however often it is looked at. The command promotes or withdraws the shadow only with --settle.

    \b
    Example:
      ciml models shadow provider --data-path data
      ciml models shadow provider --settle --data-path data
    """
    _show_comparison(options, "shadow")


def _show_comparison(options: CanaryOptions, label: str) -> None:
    from ciml.services.canary import CanaryReport, CanaryRule, compare_canary, settle_canary

    rule = CanaryRule() if options.margin is None else CanaryRule(options.margin)
    registry = _registry(options.root, options.model)
    judge = settle_canary if options.settle else compare_canary
    report = judge(registry.data, options.model, options.trust_of(registry.data), rule, label=label)

    def text(shown: CanaryReport | None) -> None:
        lines = (
            [f"{options.model} has no {label}: ciml models promote --label {label}"] if shown is None else shown.lines()
        )
        click.echo("\n".join(lines))

    options.show(report, text, lambda shown: None if shown is None else shown.to_json())


COMMANDS: list[click.Command] = [
    show_history,
    show_version,
    diff_versions,
    rollback_model,
    promote_version,
    remove_label,
    withdraw_versions,
    hold_model,
    release_model,
    show_canary,
    show_shadow,
]


class GateOptions(Data, Json):
    """Options of ``ciml gate explain``."""

    candidate: str = argument()


@make_command("explain")
def explain_decision(options: GateOptions) -> None:
    """Show each check of a candidate with its figures.

    A candidate is named by its id, or the beginning of it; a model by its name, which stands for its last candidate.

    \b
    Example:
      ciml gate explain provider --data-path data
      ciml gate explain 3f0c2a --data-path data
    """
    model, candidate, decision = _find_candidate(options.root, options.candidate)
    explained = {
        "model": model,
        "candidate": candidate.id,
        "blessed": decision.blessed,
        "reasons": list(decision.reasons),
        "checks": decision.metrics.get("checks", []),
    }
    options.show(explained, _print_decision)


def _find_candidate(root: DataRoot, name: str) -> tuple[str, Candidate, Decision]:
    """Return the candidate that a model or the beginning of an id names. Raises `CimlError` unless it is one."""
    from ciml.serving.registries import known_registries

    states = {model: registry.state for model, registry in known_registries(root).items()}
    if name in states:
        named = [(name, states[name].last_candidate)]
    else:
        named = [(model, id) for model, state in states.items() for id in state.candidates if id.startswith(name)]
    if not named or not named[0][1]:
        raise CimlError(f"{name!r:.80}: no model or candidate has this name; ciml models history lists candidates")
    if len(named) > 1:
        raise CimlError(f"{name!r:.80}: {len(named)} candidates begin like this; give more characters")
    ((model, candidate),) = named
    decision = states[model].decisions.get(candidate)
    if decision is None:
        raise CimlError(f"model {model}: candidate {candidate} has no decision yet")
    return model, states[model].candidates[candidate], decision


def _print_decision(explained: Mapping[str, Any]) -> None:
    result = "blessed" if explained["blessed"] else "rejected"
    click.echo(f"{explained['model']}: candidate {explained['candidate']} is {result}")
    if not explained["checks"]:  # an earlier version recorded the reasons only
        print_lines(explained["reasons"])
        return
    checks = [(check["check"], "ok" if check["passed"] else "FAILED", check["reason"]) for check in explained["checks"]]
    print_table(("check", "", "figures"), checks)
    failed_checks = {check["reason"] for check in explained["checks"] if not check["passed"]}
    if not explained["blessed"]:
        print_lines(reason for reason in explained["reasons"] if reason not in failed_checks)


@click.group("gate", commands=[explain_decision])
def gate() -> None:
    """Explain decisions of the gate.

    \b
    Example:
      ciml gate explain provider --data-path data
    """
