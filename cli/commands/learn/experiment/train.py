"""``ciml experiment train`` (``ciml-train-model`` in the talk) and ``ciml experiment sweep``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ciml.cli.batch_options import processors
from ciml.cli.options import data_path_option, learn_from_options, s3_options, s3_place, target_data_path_option
from ciml.cli.progress import progress_bar
from ciml.cli.tables import print_table
from ciml.errors import CimlError
from ciml.training.experiments.text import fold_lines, other_lines, result_lines

if TYPE_CHECKING:
    from ciml.pipelines.sweep import Swept
    from ciml.training.experiments.trials import Trial

#: Rows of a printed table; the page and the CSV have all.
_MOST_ROWS = 20


def _facts(ctx: click.Context, param: click.Parameter, value: str | None) -> tuple[str, ...]:
    return tuple(dict.fromkeys(part.strip() for part in value.split(",") if part.strip())) if value else ()


@click.command("train")
@click.option("--dataset", required=True, metavar="NAME", help="Data set to train on.")
@click.option("--experiment", metavar="NAME", help="Experiment to train.")
@click.option(
    "--estimator",
    "estimators",
    multiple=True,
    metavar="NAME",
    help="Estimator to train with its default parameters, instead of --experiment; may be repeated.",
)
@click.option(
    "--eval-dataset", "others", multiple=True, metavar="NAME", help="Further data set to test on; may be repeated."
)
@click.option(
    "--cross-validate",
    "folds",
    type=click.IntRange(2),
    metavar="FOLDS",
    help="Number of cross-validation folds of the training runs; the test runs stay unread.",
)
@click.option(
    "--hold-out",
    metavar="FACT[,FACT…]",
    callback=_facts,
    help="Fact by which --cross-validate groups runs into folds, such as flavour, change or job.",
)
@learn_from_options
@click.option(
    "--tensorboard",
    metavar="FOLDER",
    type=click.Path(file_okay=False),
    help="Folder of TensorBoard's event files.  [default: none]",
)
@click.option("--gpu/--no-gpu", default=False, hidden=True, help="Option of the talk; training is on the CPU.")
@click.option("--debug/--no-debug", default=None, hidden=True, help="Option of the talk; see CIML_DEBUG.")
@click.option("--json", "as_json", is_flag=True, help="JSON output of the stored result.")
@data_path_option()
@s3_options
def train(
    dataset: str,
    experiment: str | None,
    estimators: tuple[str, ...],
    others: tuple[str, ...],
    folds: int | None,
    hold_out: tuple[str, ...],
    data_path: str,
    trust_policy: str | None,
    exclude: str | None,
    tensorboard: str | None,
    gpu: bool,
    debug: bool | None,
    as_json: bool,
) -> None:
    """Train and test experiments on a data set.

    It trains on trusted runs, tests on held-out ones and stores the result. The same experiment on the same runs again
    shows the stored result.

    \b
    Example:
      ciml-train-model --dataset cpu-load-1min-dataset --experiment dnn-5x100 --data-path s3://cimldatasets
      ciml experiment train --estimator random_forest --estimator svm --dataset cpu-load --data-path DATA
      ciml experiment train --experiment wide --dataset cpu-load --eval-dataset other-job --data-path DATA
      ciml experiment train --experiment wide --dataset cpu-load --cross-validate 5 --hold-out flavour --data-path DATA
    """
    if bool(experiment) == bool(estimators):
        raise CimlError("give either --experiment NAME, or --estimator NAME for an estimator with its defaults")
    if gpu:
        raise CimlError("--gpu: training is on the CPU, so that a seed gives the same model everywhere; leave it out")
    if hold_out and folds is None:
        raise CimlError("--hold-out: needs --cross-validate FOLDS")
    if folds is not None and others:
        raise CimlError(
            "--eval-dataset: not supported with --cross-validate, which trains several models; leave one out"
        )
    from ciml.data_root import DataRoot
    from ciml.training.data.examples import read_dataset
    from ciml.training.exclusions import add, read_lines
    from ciml.training.experiments.trials import Trial, create_experiment, experiment_of, load_experiment
    from ciml.trust import TrustPolicy

    data = DataRoot.open(data_path)
    policy = TrustPolicy.load(trust_policy)
    chosen = [load_experiment(data.experiments, experiment)] if experiment else [*map(experiment_of, estimators)]
    add(data.exclusions, read_lines(exclude))
    material = read_dataset(data.dataset(dataset), policy)
    materials = [read_dataset(data.dataset(name), policy) for name in others]
    for definition in chosen:
        if estimators:
            create_experiment(data.experiments, definition)
        with progress_bar(f"training {definition.name}") as progress:
            trial = Trial(data.experiments, definition, material, Path(tensorboard) if tensorboard else None, progress)
            if folds is not None:
                results = [trial.cross_validate(folds, hold_out, progress)]
            else:
                results = [trial.run(), *(trial.run_on(further) for further in materials)]
        for number, (result, new) in enumerate(results):
            lines = fold_lines if folds is not None else other_lines if number else result_lines
            _show(trial, result, new, as_json, lines(result))


def _show(trial: Trial, result: dict[str, Any], new: bool, as_json: bool, lines: list[str]) -> None:
    if as_json:
        import json

        click.echo(json.dumps(result, sort_keys=True))
        return
    for line in lines:
        click.echo(line)
    click.echo(f"  {'stored in' if new else 'as it is already in'} {trial.store.url()}")


@click.command("sweep")
@click.argument("file", type=click.Path(exists=True, dir_okay=False))
@click.option(
    "--jobs",
    type=click.IntRange(1, 256),
    metavar="N",
    help="Number of parallel trials, at most the lag in FILE, each a process of one thread.  [default: one a"
    " processor]",
)
@click.option(
    "--best",
    type=click.IntRange(0),
    default=1,
    metavar="N",
    help="Number of best trials of each question to print commands for.",
)
@learn_from_options
@click.option(
    "--output",
    metavar="FOLDER",
    callback=s3_place,
    help="Folder or s3:// prefix of index.html, the plots and trials.csv.  [default: NAME-sweep]",
)
@click.option("--json", "as_json", is_flag=True, help="JSON output of all trials.")
@data_path_option()
@target_data_path_option
@s3_options
def sweep(
    file: str,
    jobs: int | None,
    best: int,
    trust_policy: str | None,
    exclude: str | None,
    output: str | None,
    as_json: bool,
    data_path: str,
    target_data_path: str | None,
) -> None:
    """Sweep over data sets and hyper-parameters.

    It builds a data set and trains a model for each combination of FILE, and compares them. FILE is TOML with common
    values and lists or ranges of varied ones; docs/sweeps.md lists the keys. Trials are scored on folds or on dev; the
    test runs are never read. An interrupted sweep continues with the remaining trials, to the same result.

    \b
    Example:
      ciml experiment sweep examples/sweep.toml --data-path DATA
      ciml experiment sweep talk.toml --jobs 8 --data-path s3://cimlrawdata --target-data-path s3://cimldatasets
    """
    from ciml.data_root import DataRoot
    from ciml.digest import canonical_json
    from ciml.pipelines.sweep import SweepContext, run_sweep
    from ciml.reports.page import save
    from ciml.reports.sweeps.page import sweep_page
    from ciml.reports.sweeps.views import csv_of
    from ciml.storage import open_store
    from ciml.training.exclusions import add, exclusions_of, read_lines
    from ciml.training.sweeps.definition import Sweep
    from ciml.trust import TrustPolicy

    definition = Sweep.load(file)
    source = DataRoot.open(data_path)
    target = source if target_data_path is None else DataRoot.open(target_data_path)
    add(target.exclusions, read_lines(exclude))
    context = SweepContext(source, target, definition, TrustPolicy.load(trust_policy), exclusions_of(target, source))
    processes = min(jobs or processors(), definition.lag)
    with progress_bar(f"sweep {definition.name}") as bar:
        swept = run_sweep(context, jobs=processes, progress=bar)
    result = _json(swept)
    page = save(open_store(output or f"{definition.name}-sweep"), sweep_page(swept), {"trials.csv": csv_of(swept)})
    if as_json:
        click.echo(canonical_json(result))
        return
    _show_sweep(swept)
    _print_best(swept, best, target_data_path or data_path)
    click.echo(page)


def _json(swept: Swept) -> dict[str, Any]:
    from ciml.reports.sweeps.views import complete, question_name, questions

    return {
        "sweep": swept.sweep.to_json(),
        "questions": [
            {
                "question": question,
                "name": question_name(swept.sweep, question),
                "parameters": dict(swept.sweep.questions[question]),
                "baselines": dict(swept.baselines[question]),
                "best": next((trial.number for trial in complete(swept, question)), None),
            }
            for question in questions(swept.sweep)
        ],
        "trials": [outcome.to_json() for outcome in swept.outcomes],
        "trained": swept.trained,
    }


def _show_sweep(swept: Swept) -> None:
    from ciml.reports.drawing import shown
    from ciml.reports.sweeps.page import trials_table
    from ciml.reports.sweeps.views import METRICS, question_name, questions, scored_on

    for question in questions(swept.sweep):
        table = trials_table(swept, question)
        name = shown(question_name(swept.sweep, question), 60)
        title = f"{name}: {METRICS[swept.sweep.metric]} on {scored_on(swept.sweep)}"
        numbers = [*table.headings[:1], *table.headings[table.words :]]
        print_table(table.headings, table.rows[:_MOST_ROWS], title=title, right=numbers)
        if len(table.rows) > _MOST_ROWS:
            click.echo(f"{len(table.rows) - _MOST_ROWS} more are on the page and in trials.csv")


def _print_best(swept: Swept, best: int, data_path: str) -> None:
    from ciml.reports.sweeps.views import complete, define_lines, question_name, questions

    states = [outcome.state for outcome in swept.outcomes]
    counts = ", ".join(
        f"{states.count(state)} {state}" for state in ("complete", "pruned", "failed") if state in states
    )
    click.echo(f"{len(states)} trials: {counts}; {swept.trained} trained now")
    chosen = [(question, trial) for question in questions(swept.sweep) for trial in complete(swept, question)[:best]]
    if chosen:
        click.echo("the test runs are unread; test your choice once, by:")
    for question, trial in chosen:
        click.echo(f"# trial {trial.number}, {question_name(swept.sweep, question)}")
        for line in define_lines(swept, trial, data_path):
            click.echo(line)
