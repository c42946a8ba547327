"""``ciml purge``, ``ciml models who-learned`` and ``ciml why-trained``: take back what models learned from runs."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING

import click

from ciml.cli.command import make_command
from ciml.cli.commands.learn.exclude import RunChoice
from ciml.cli.options import Data, Json, JsonLines, Signed
from ciml.cli.output import print_table, printable
from ciml.cli.running import find_own_modules
from ciml.options import TrustOptions, argument, flag, option, repeated

if TYPE_CHECKING:
    from ciml.training.learned import Learning, ModelWithExcludedRuns

#: Exit code if a model is left that does not serve a version known to be clean.
INCOMPLETE = 5


class PurgeOptions(RunChoice, Data, Signed, TrustOptions):
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
    code is 5 if a model is left without a version that is known to be clean.

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
            TrainConfig(data, dataset, model, trust=options.trust_of(data)),
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
    for model in purged:
        click.echo("\n".join(model.lines()))
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
    options.show_all(versions, _print_versions, asdict)


def _print_versions(found: list[ModelWithExcludedRuns]) -> None:
    rows = []
    for version in found:
        state = "withdrawn" if version.withdrawn else ", ".join(version.labels) or "not served"
        runs = version.fault or f"{len(version.runs):,}, such as {version.runs[0]}"
        rows.append((version.model, version.version, state, printable(runs)))
    if rows:
        print_table(("model", "version", "state", "runs"), rows)
    else:
        click.echo("no version learned from these runs")


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
        (part.model, part.version, part.role, printable(part.label), printable(part.rule), "withdrawn" * part.withdrawn)
        for part in parts
    ]
    if rows:
        print_table(("model", "version", "part", "class", "trust rule", ""), rows)
    else:
        click.echo("no version of a model used this run; ciml trust explain shows whether it is trusted")
