"""Runs that no model may learn from: ``ciml exclude`` lists them, and ``ciml purge`` takes back what models learned.

``ciml models who-learned`` and ``ciml why-trained`` show what models learned from a run.
"""

from __future__ import annotations

import json
from dataclasses import asdict, fields
from typing import TYPE_CHECKING

import click

from ciml.cli.command import DefaultGroup, make_command
from ciml.cli.options import Data, Json, JsonLines, Signed
from ciml.cli.output import minute_of, print_lines, print_table, print_warnings
from ciml.cli.running import find_own_modules
from ciml.data_root import DataRoot
from ciml.options import Options, TrustOptions, argument, flag, option, repeated
from ciml.services.options import GateOptions

if TYPE_CHECKING:
    from ciml.training.exclusions import Exclusion, StoredExclusion
    from ciml.training.learned import AffectedVersion, Learning

#: Exit code of a purge that leaves something to do.
INCOMPLETE = 5


class RunChoice(Options):
    """The runs of a command: one, or all that match each of the other options.

    Attributes:
      run_id: Run id, source~native id~attempt.
      job: Job of the runs, or a glob of jobs.
      source: Source of the runs, such as zuul.
      project: Project of the runs, or a glob of projects.
      branch: Branch of the runs, or a glob of branches.
      owner: Who started the runs.
      change: Change of the runs.
      since_us: Runs that ran at or after TIME, ISO 8601; UTC without a zone.
      until_us: Runs that started before TIME; needs --since.
    """

    run_id: str = option("", flags="--run", metavar="ID")
    job: str = option("", metavar="GLOB")
    source: str = option("", metavar="NAME")
    project: str = option("", metavar="GLOB")
    branch: str = option("", metavar="GLOB")
    owner: str = option("", metavar="NAME")
    change: str = option("", metavar="ID")
    since_us: int | None = option(kind="instant", flags="--since")
    until_us: int | None = option(kind="instant", flags="--until")

    def exclusion(self, reason: str) -> Exclusion:
        """Return the exclusion of these runs. Raises `CimlError` if the options name none."""
        from ciml.training.exclusions import Exclusion

        criteria = {field.name: getattr(self, field.name) for field in fields(RunChoice)}
        return Exclusion(reason, **criteria).check()


class AddOptions(RunChoice, Data, Signed):
    """Options of ``ciml exclude`` without a command.

    Attributes:
      reason: Reason, for readers of the list and of metrics.
    """

    reason: str = option(metavar="TEXT", required=True)


@make_command("add")
def add(options: AddOptions) -> None:
    """Exclude runs from training.

    It excludes one run by --run, or all runs that match each of the other options, stored and future ones. A model that
    learned from such a run is still served; the command warns about it.

    \b
    Example:
      ciml exclude --run zuul~5f0c~1 --reason "disk was full" --data-path data
      ciml exclude --job 'tempest-*' --since 2026-11-01 --until 2026-11-03T12:00Z --reason "bad mirror" --data-path data
    """
    from ciml.training import exclusions

    data = options.root
    exclusion = options.exclusion(options.reason)
    (stored,) = exclusions.add(data.exclusions, [exclusion], author=options.signed_by())
    matching = _count_matching(data, exclusion)
    note = "" if matching is None else f"; stored runs that match: {matching:,}"
    print_lines([f"exclusion {stored.id}: {_text(exclusion)}{note}"])
    if matching == 0:
        print_warnings(["no stored run matches; later ones may"])
    _warn_of_models(data)


class ListOptions(Data, Json):
    """Options of ``ciml exclude list``.

    Attributes:
      all: Reverted exclusions too.
      json: JSON output, an array of all exclusions.
    """

    all: bool = flag()


@make_command("list")
def list_exclusions(options: ListOptions) -> None:
    """List the exclusions in force.

    \b
    Example:
      ciml exclude list --data-path data
      ciml exclude list --all --data-path data
    """
    from ciml.training.exclusions import read_state

    data = options.root
    state = read_state(data.exclusions)
    exclusions = list(state.by_id.values()) if options.all or options.json else state.active()
    if options.json:
        click.echo(json.dumps([stored.to_json() for stored in exclusions], indent=2))
        return
    print_lines(map(_exclusion_line, exclusions) if exclusions else ["no exclusions"])
    _warn_of_models(data)


def _exclusion_line(stored: StoredExclusion) -> str:
    by = f"{stored.author}: " if stored.author else ""
    note = "" if stored.reverted_us is None else f"  ({_reverted(stored)})"
    return f"{stored.id:>4}  {minute_of(stored.time_us)}  {by}{_text(stored.exclusion)}{note}"


def _text(exclusion: Exclusion) -> str:
    return f"{exclusion.describe()}: {exclusion.reason}"


def _reverted(stored: StoredExclusion) -> str:
    by = f" by {stored.reverted_by}" if stored.reverted_by else ""
    return f"reverted{by}" + (f": {stored.revert_reason}" if stored.revert_reason else "")


class RevertOptions(Data, Signed):
    """Options of ``ciml exclude revert``.

    Attributes:
      reason: Why they are in force no longer.
    """

    reason: str = option("", metavar="TEXT")
    ids: tuple[int, ...] = argument("ID…", "count", many=True)


@make_command("revert")
def revert(options: RevertOptions) -> None:
    """Revert exclusions by their IDs.

    Later trainings may learn from their runs again, unless another exclusion matches.

    \b
    Example:
      ciml exclude revert 3 --data-path data
    """
    from ciml.training import exclusions

    author = options.signed_by()
    reverted = exclusions.revert(options.root.exclusions, options.ids, author=author, reason=options.reason)
    print_lines(f"reverted {stored.id}: {_text(stored.exclusion)}" for stored in reverted)


def _count_matching(data: DataRoot, exclusion: Exclusion) -> int | None:
    """Return the number of stored runs that an exclusion matches; None if no run is stored."""
    from ciml.pipelines.datasets.update import StoredRuns

    runs = StoredRuns(data.raw)
    if runs.is_empty():
        return None
    matching: dict[str, bool] = {}
    for _, delta in runs.log.since(0):
        for record in delta.rows:  # a run's last row has the facts that count
            matching[record.mention.run_id] = exclusion.matches(record.facts)
    return sum(matching.values())


def _warn_of_models(data: DataRoot) -> None:
    """Warn of each served model that learned from an excluded run."""
    from ciml.training.learned import models_with_excluded_runs

    print_warnings(map(str, models_with_excluded_runs(data)))


@click.group("exclude", cls=DefaultGroup, default="add", commands=[add, list_exclusions, revert])
def command() -> None:
    """Exclude runs from training, list and revert exclusions.

    Without a COMMAND it adds an exclusion. Later refreshes, experiments and sweeps do not learn from excluded runs,
    which are still stored and predicted.

    \b
    Example:
      ciml exclude --run zuul~5f0c~1 --reason "disk was full" --data-path data
      ciml exclude list --data-path data
      ciml exclude revert 1 --data-path data
    """


class PurgeOptions(RunChoice, Data, Signed, TrustOptions, GateOptions):
    """Options of ``ciml purge``.

    Attributes:
      reason: Why, for readers of the ledger and of the exclusions.
      models: Model to purge; may be repeated. [default: all models]
      retrain: Train each model again, or leave that to its trainer.
    """

    reason: str = option(metavar="TEXT", required=True)
    models: tuple[str, ...] = repeated(flags="--model", metavar="MODEL")
    retrain: bool = flag("--retrain/--no-retrain", default=True)


@make_command("purge")
def purge_command(options: PurgeOptions) -> int:
    """Withdraw and retrain models without some runs.

    It excludes the runs, withdraws every version that learned from them, and trains these models again. The last clean
    version serves meanwhile; without one, none does. The same command completes a purge that was interrupted. The exit
    code is 5 if something is left to do, which it then names: the gate rejected the new candidate, the training failed,
    or a version cannot be checked. Name the options of the gate that the model's trainer has.

    \b
    Example:
      ciml purge --source zuul-fork --since 2026-11-01 --reason "forged results" --data-path data
    """
    from ciml.serving.registry import Signature
    from ciml.training.purge import purge
    from ciml.training.refresh import TrainConfig
    from ciml.training.trainer import TrainResult, run_once

    find_own_modules()
    data = options.root

    def retrain(model: str, dataset: str) -> TrainResult:
        def step(name: str, done: int = 0, total: int | None = None) -> None:
            click.echo(f"{model}: {name}", err=True)

        return run_once(
            TrainConfig(
                data,
                dataset,
                model,
                trust=options.trust_of(data),
                gate=options.gate(),
                allow_modules=options.allow_modules,
            ),
            progress=step,
            reason=f"purge: {options.reason}",
        )

    signed = Signature(options.signed_by(), options.reason)
    purged = purge(
        data,
        options.exclusion(options.reason),
        signed,
        retrain if options.retrain else None,
        models=options.models or None,
    )
    print_lines(line for model in purged for line in model.lines())
    if not purged:
        click.echo("no version of a model learned from these runs; they are excluded from now on")
    return INCOMPLETE if any(model.missing or model.champion is None for model in purged) else 0


class WhoLearnedOptions(RunChoice, Data, JsonLines):
    """Options of ``ciml models who-learned``."""


@make_command("who-learned")
def who_learned(options: WhoLearnedOptions) -> None:
    """List the versions that learned from some runs.

    \b
    Example:
      ciml models who-learned --source zuul-fork --since 2026-11-01 --data-path data
    """
    from ciml.training.exclusions import Exclusions
    from ciml.training.learned import versions_that_learned

    versions = versions_that_learned(options.root, Exclusions((options.exclusion("who learned"),)))
    options.show_all(versions, _print_versions, asdict, "no version learned from these runs")


def _print_versions(versions: list[AffectedVersion]) -> None:
    rows = []
    for version in versions:
        state = "withdrawn" if version.withdrawn else ", ".join(version.labels) or "not served"
        runs = version.fault or f"{len(version.runs):,}, such as {version.runs[0]}"
        rows.append((version.model, version.version, state, runs))
    print_table(("model", "version", "state", "runs"), rows)


class WhyTrainedOptions(Data, Json):
    """Options of ``ciml why-trained``."""

    run_id: str = argument()


@make_command("why-trained")
def why_trained(options: WhyTrainedOptions) -> None:
    """Show which models learned from a run, and why.

    Of each version it shows the run's part (train, dev or test), its class, and the trust rule that accepted it.

    \b
    Example:
      ciml why-trained zuul~5f0c~1 --data-path data
    """
    from ciml.training.learned import parts_of_run

    parts = list(parts_of_run(options.root, options.run_id))
    options.show(parts, _print_parts, lambda parts: [asdict(part) for part in parts])


def _print_parts(parts: list[Learning]) -> None:
    rows = [
        (part.model, part.version, part.role, part.label, part.rule, "withdrawn" if part.withdrawn else "")
        for part in parts
    ]
    if rows:
        print_table(("model", "version", "part", "class", "trust rule", "state"), rows)
    else:
        click.echo("no version of a model used this run; ciml trust explain shows whether it is trusted")
