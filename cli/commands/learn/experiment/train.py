"""``ciml experiment train`` (``ciml-train-model`` in the talk) and ``ciml experiment sweep``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ciml.cli.command import make_command
from ciml.cli.options import Data, Json, S3Environment, TargetData
from ciml.cli.output import print_lines, print_table, progress_bar
from ciml.cli.running import find_own_modules, processors
from ciml.errors import CimlError
from ciml.options import LearnOptions, argument, flag, option, repeated
from ciml.settings import pairs
from ciml.training.evaluation.text import fold_lines, other_lines, result_lines

if TYPE_CHECKING:
    from ciml.pipelines.sweep import Swept

#: Rows of a printed table; the page and the CSV have all.
_MOST_ROWS = 20
VIEWS = ("windows", "flat", "summary")
#: Constants as Python writes them, and as JSON does.
_PYTHON_WORDS = {"None": "null", "none": "null", "True": "true", "False": "false"}


def parse_parameters(ctx: click.Context, param: click.Parameter, values: tuple[str, ...]) -> dict[str, Any] | None:
    """Parse ``NAME=VALUE`` pairs; a value is JSON, a constant of Python, or else a text."""
    parameters: dict[str, Any] = {}
    for name, value in pairs(param.opts[0], values):
        try:
            parameters[name] = json.loads(_PYTHON_WORDS.get(value, value))
        except (ValueError, RecursionError):
            parameters[name] = value
    return parameters or None


def _split_facts(ctx: click.Context, param: click.Parameter, value: str | None) -> tuple[str, ...]:
    return tuple(dict.fromkeys(part.strip() for part in value.split(",") if part.strip())) if value else ()


class TrainOptions(S3Environment, Json, LearnOptions, Data):
    """Options of ``ciml experiment train``.

    Attributes:
      dataset: Data set to train on.
      experiment: Experiment to train.
      estimators: Estimator to train instead of --experiment: a built-in one, a classifier of scikit-learn, or
        package.module:name; may be repeated.
      parameters: Parameter of the estimators; may be repeated. VALUE is JSON or a text.
      view: View of a run that the estimators get. [default: the estimator's]
      allow_modules: Module that a stored experiment may import; may be repeated.
      eval_datasets: Further data set to test on; may be repeated.
      folds: Number of cross-validation folds of the training runs; the test runs are not read.
      hold_out: Fact by which --cross-validate groups runs into folds, such as flavour or job; run for no groups.
        [default: change]
      tensorboard: Folder of TensorBoard's event files. [default: none]
      gpu: Option of the talk; training is on the CPU.
      debug: Option of the talk; see CIML_DEBUG.
      json: JSON output of the stored result.
    """

    dataset: str = option(metavar="NAME", required=True)
    experiment: str | None = option(metavar="NAME")
    estimators: tuple[str, ...] = repeated(metavar="NAME")
    parameters: dict[str, Any] | None = repeated(parse_parameters, flags="-p --parameter", metavar="NAME=VALUE")
    view: str | None = option(kind=click.Choice(VIEWS))
    allow_modules: tuple[str, ...] = repeated(metavar="MODULE")
    eval_datasets: tuple[str, ...] = repeated(metavar="NAME")
    folds: int | None = option(kind=click.IntRange(2), flags="--cross-validate", metavar="FOLDS")
    hold_out: tuple[str, ...] = option((), _split_facts, metavar="FACT[,FACT…]")
    tensorboard: Path | None = option(kind=click.Path(file_okay=False, path_type=Path), metavar="FOLDER")
    gpu: bool = flag("--gpu/--no-gpu", hidden=True)
    debug: bool | None = flag("--debug/--no-debug", default=None, hidden=True)


@make_command("train")
def train(options: TrainOptions) -> None:
    """Train and test experiments on a data set.

    It trains on trusted runs, tests on held-out ones and stores the result. The same experiment on the same runs again
    shows the stored result.

    \b
    Example:
      ciml-train-model --dataset cpu-load-1min-dataset --experiment dnn-5x100 --data-path s3://cimldatasets
      ciml experiment train --estimator random_forest --estimator svm --dataset cpu-load --data-path DATA
      ciml experiment train --estimator LogisticRegression -p C=0.1 --view summary --dataset cpu-load --data-path DATA
      ciml experiment train --estimator mine.models:Forest -p depth=4 --dataset cpu-load --data-path DATA
      ciml experiment train --experiment wide --dataset cpu-load --eval-dataset other-job --data-path DATA
      ciml experiment train --experiment wide --dataset cpu-load --cross-validate 5 --hold-out flavour --data-path DATA
    """
    folds = options.folds
    if bool(options.experiment) == bool(options.estimators):
        raise CimlError("give either --experiment NAME, or --estimator NAME with its parameters")
    if options.experiment and (options.parameters or options.view):
        raise CimlError("-p and --view: an experiment has its own; use them with --estimator")
    if options.gpu:
        raise CimlError("--gpu: training is on the CPU, so that a seed gives the same model everywhere; leave it out")
    if options.hold_out and folds is None:
        raise CimlError("--hold-out: needs --cross-validate FOLDS")
    if folds is not None and options.eval_datasets:
        raise CimlError(
            "--eval-dataset: not supported with --cross-validate, which trains several models; leave one out"
        )
    hold_out = () if options.hold_out == ("run",) else options.hold_out or ("change",)
    from ciml.training.data.examples import read_dataset
    from ciml.training.estimators import modules_named
    from ciml.training.exclusions import add, read_lines
    from ciml.training.experiments.results import create_experiment, experiment_of, load_experiment
    from ciml.training.experiments.trials import Trial

    find_own_modules()
    data = options.root
    policy = options.trust_of(data).current()
    options_of_estimator = {"parameters": options.parameters, "view": options.view}
    keys = {key: value for key, value in options_of_estimator.items() if value}
    experiments = [experiment_of(estimator, keys) for estimator in options.estimators]
    allowed = (*options.allow_modules, *(module for experiment in experiments for module in modules_named(experiment)))
    if options.experiment:
        experiments.append(load_experiment(data.experiments, options.experiment))
    datasets = [data.dataset(name) for name in (options.dataset, *options.eval_datasets)]
    for dataset in datasets:
        dataset.state()  # raises for a missing one, before exclusions are stored
    add(data.exclusions, read_lines(options.exclude))
    examples, *further = [read_dataset(dataset, policy) for dataset in datasets]
    for experiment in experiments:
        if options.estimators:
            create_experiment(data.experiments, experiment, allowed)
        with progress_bar(f"training {experiment.name}") as progress:
            trial = Trial(data.experiments, experiment, examples, options.tensorboard, progress, allowed)
            if folds is not None:
                results = [(*trial.cross_validate(folds, hold_out, progress), fold_lines)]
            else:
                results = [(*trial.run(), result_lines)]
                results += [(*trial.run_on(further_examples), other_lines) for further_examples in further]
        for result, is_new, lines_of in results:
            if options.json:
                click.echo(json.dumps(result, sort_keys=True))
                continue
            click.echo("\n".join(lines_of(result)))
            click.echo(f"  {'stored in' if is_new else 'as it is already in'} {trial.store.url()}")


class SweepOptions(TargetData, S3Environment, Json, LearnOptions):
    """Options of ``ciml experiment sweep``.

    Attributes:
      jobs: Number of parallel trials, at most the lag in FILE, each a process of one thread. [default: one a processor]
      best: Number of best trials of each question to print commands for.
      output: Folder or s3:// prefix of index.html, the plots and trials.csv. [default: NAME-sweep]
      json: JSON output of all trials.
    """

    file: str = argument(kind=click.Path(exists=True, dir_okay=False))
    jobs: int | None = option(kind=click.IntRange(1, 256), metavar="N")
    best: int = option(1, click.IntRange(0), metavar="N")
    output: str | None = option(kind="place", metavar="FOLDER")


@make_command("sweep")
def sweep(options: SweepOptions) -> None:
    """Sweep over data sets and hyper-parameters.

    It builds a data set and trains a model for each combination of FILE, and compares them. FILE is TOML with common
    values and lists or ranges of varied ones; docs/sweeps.md lists the keys. Trials are scored on folds or on dev; the
    test runs are never read. An interrupted sweep continues with the remaining trials, to the same result.

    \b
    Example:
      ciml experiment sweep examples/sweep.toml --data-path DATA
      ciml experiment sweep talk.toml --jobs 8 --data-path s3://cimlrawdata --target-data-path s3://cimldatasets
    """
    from ciml.digest import canonical_json
    from ciml.pipelines.sweep import SweepContext, run_sweep
    from ciml.reports.page import save
    from ciml.reports.sweeps import csv_of
    from ciml.reports.sweeps.page import sweep_page
    from ciml.storage import open_store
    from ciml.training.exclusions import add, exclusions_of, read_lines
    from ciml.training.sweeps.definition import Sweep

    find_own_modules()
    definition = Sweep.load(options.file)
    source = options.root
    target = options.target
    policy = options.trust_of(target, source).current()
    add(target.exclusions, read_lines(options.exclude))
    context = SweepContext(source, target, definition, policy, exclusions_of(target, source))
    processes = min(options.jobs or processors(), definition.lag)
    with progress_bar(f"sweep {definition.name}") as bar:
        swept = run_sweep(context, jobs=processes, progress=bar)
    output = open_store(options.output or f"{definition.name}-sweep")
    page = save(output, sweep_page(swept), {"trials.csv": csv_of(swept)})
    if options.json:
        click.echo(canonical_json(_sweep_json(swept)))
        return
    _show_sweep(swept)
    _print_best(swept, options.best, options.target_data_path or options.data_path)
    click.echo(page)


def _sweep_json(swept: Swept) -> dict[str, Any]:
    from ciml.reports.sweeps import complete, question_name, questions

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
    from ciml.reports.sweeps import METRICS, question_name, questions, scored_on
    from ciml.reports.sweeps.page import trials_table

    for question in questions(swept.sweep):
        table = trials_table(swept, question)
        name = shown(question_name(swept.sweep, question), 60)
        title = f"{name}: {METRICS[swept.sweep.metric]} on {scored_on(swept.sweep)}"
        numbers = [*table.headings[:1], *table.headings[table.words :]]
        print_table(table.headings, table.rows[:_MOST_ROWS], title=title, right=numbers)
        if len(table.rows) > _MOST_ROWS:
            click.echo(f"{len(table.rows) - _MOST_ROWS} more are on the page and in trials.csv")


def _print_best(swept: Swept, best: int, data_path: str) -> None:
    from ciml.reports.sweeps import complete, define_lines, question_name, questions

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
        print_lines(define_lines(swept, trial, data_path))
