"""``ciml experiment``: define, show, compare and report experiments; `train` has the commands that train."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import partial
from typing import Any

import click

from ciml.cli.command import make_command
from ciml.cli.commands.data.plot import OutputOptions
from ciml.cli.commands.learn.experiment.train import VIEWS, parse_parameters, sweep, train
from ciml.cli.options import Data, Json, S3Environment
from ciml.cli.output import print_table, progress_bar
from ciml.cli.running import find_own_modules
from ciml.errors import CimlError
from ciml.options import Options, argument, flag, option, repeated
from ciml.training.evaluation.text import result_lines

Record = Mapping[str, Any]

#: The talk's estimator: the default of its command, and of options of networks.
TALK_ESTIMATOR = "tf.estimator.DNNClassifier"
#: Defaults of the talk's estimators, which differ from this project's: its names keep their training.
_TALK: dict[str, dict[str, Any]] = {TALK_ESTIMATOR: {"optimizer": "adagrad", "learning_rate": 0.05, "l2": 0.0}}
_OPTIMIZERS = ("Adagrad", "Adam", "AdamW", "Ftrl", "ProximalAdagrad", "RMSProp", "SGD")


class HyperParameters(Options):
    """The hyper-parameters of an experiment; None for the default of the estimator.

    Attributes:
      estimator: Estimator: dnn, cnn, gru, svm, random_forest, hist_gradient_boosting, boosted_summaries, a classifier
        of scikit-learn such as LogisticRegression, or package.module:name. tf.estimator.DNNClassifier is dnn with
        Adagrad, learning rate 0.05 and no penalty; tf.contrib.learn.SVM is svm. [default: random_forest;
        tf.estimator.DNNClassifier with an option of networks]
      hidden_layers: Units (cnn: filters) of each hidden layer, such as 100/100.
      steps: Maximum number of batches.
      batch_size: Runs of a batch.
      epochs: Maximum passes over the training runs.
      optimizer: Optimizer of a network.
      learning_rate: Initial learning rate.
      schedule: Schedule of the learning rate.
      activation: Activation of the hidden layers.
      dropout: Dropout rate before each hidden layer.
      l2: L2 penalty of the weights.
      batch_norm: Batch normalisation before each layer.
      kernel_size: Kernel size of a convolution, in windows.
      early_stopping: Epochs without a lower dev loss after which training stops.
      class_weights: Class weights; balanced weights rare classes higher.
      seed: Random seed of weights, order and dropout.
      parameters: Parameter of the estimator; may be repeated. VALUE is JSON or a text; step__NAME is one of a part.
      view: View of a run that the estimator gets. [default: the estimator's]
    """

    estimator: str | None = option(metavar="NAME")
    hidden_layers: str | None = option(metavar="N/N/…")
    steps: int | None = option(kind="count")
    batch_size: int | None = option(kind="count")
    epochs: int | None = option(kind="count")
    optimizer: str | None = option(kind=click.Choice(_OPTIMIZERS, case_sensitive=False))
    learning_rate: float | None = option(kind=click.FloatRange(0, min_open=True))
    schedule: str | None = option(kind=click.Choice(["constant", "cosine"]))
    activation: str | None = option(kind=click.Choice(["relu", "gelu", "tanh", "elu"]))
    dropout: float | None = option(kind=click.FloatRange(0, 1, max_open=True))
    l2: float | None = option(kind="no negative number")
    batch_norm: bool | None = flag(default=None)
    kernel_size: int | None = option(kind="count")
    early_stopping: int | None = option(kind="count", metavar="EPOCHS")
    class_weights: str | None = option(kind=click.Choice(["none", "balanced"]))
    seed: int | None = option(kind=click.IntRange(0))
    parameters: dict[str, Any] | None = repeated(parse_parameters, flags="-p --parameter", metavar="NAME=VALUE")
    view: str | None = option(kind=click.Choice(VIEWS))


class TalkHyperParameters(HyperParameters):
    """The same with the default estimator of the talk.

    Attributes:
      estimator: Estimator, as for ciml experiment define. tf.estimator.DNNClassifier is dnn with Adagrad, learning rate
        0.05 and no penalty; tf.contrib.learn.SVM is svm.
    """

    estimator: str | None = option(TALK_ESTIMATOR)


def _define(name: str, data_path: str, parameters: HyperParameters) -> None:
    from ciml.data_root import DataRoot
    from ciml.training.estimators import default_estimator, identified, modules_named
    from ciml.training.experiment import Experiment
    from ciml.training.experiments.results import create_experiment, experiment_store

    values = {key: value for key, value in asdict(parameters).items() if value not in (None, ())}
    if "optimizer" in values:
        # ProximalAdagrad without penalties is Adagrad, and it has no options of penalties here.
        values["optimizer"] = values["optimizer"].lower().removeprefix("proximal")
    if "estimator" not in values:
        default = default_estimator(values)
        values["estimator"] = TALK_ESTIMATOR if default == "dnn" else default
    experiment = Experiment.from_json({"name": name, **_TALK.get(values["estimator"], {}), **values})
    find_own_modules()
    modules = modules_named(experiment)
    experiment = identified(experiment, modules)
    stored = DataRoot.open(data_path).experiments
    new = create_experiment(stored, experiment, modules)
    where = experiment_store(stored, name).url("experiment.json")
    click.echo(f"{name}: {experiment.estimator}, {'stored in' if new else 'as it is already in'} {where}")
    allow = "".join(f" --allow-module {module}" for module in modules)
    click.echo(f"train it by: ciml experiment train --experiment {name} --dataset NAME{allow} --data-path {data_path}")


class DefineOptions(S3Environment, Data):
    """Options of ``ciml experiment define``."""

    name: str = argument()


@make_command("define")
def define(options: DefineOptions, parameters: HyperParameters) -> None:
    """Define an experiment.

    It stores an estimator and its hyper-parameters under NAME. The same definition again changes nothing; a different
    one under NAME is an error. Defaults are listed in docs/training.md.

    \b
    Example:
      ciml experiment define wide --hidden-layers 100/100 --epochs 500 --batch-size 128 --data-path DATA
      ciml experiment define forest --estimator random_forest -p n_estimators=500 --data-path DATA
      ciml experiment define linear --estimator LogisticRegression -p C=0.1 --view summary --data-path DATA
      ciml experiment define mine --estimator mine.models:Forest -p 'depths=[2, 4]' --data-path DATA
    """
    _define(options.name, options.data_path, parameters)


class SetupOptions(S3Environment, Data):
    """Options of ``ciml-setup-experiment``.

    Attributes:
      experiment: Name of the experiment.
      force: Option of the talk; not supported.
    """

    experiment: str = option("experiment")
    force: bool = flag("--force/--no-force", hidden=True)


@make_command("ciml-setup-experiment")
def setup(options: SetupOptions, parameters: TalkHyperParameters) -> None:
    """Define an experiment.

    It stores an estimator and its hyper-parameters, as ciml experiment define does, with the options of the talk.

    \b
    Example:
      ciml-setup-experiment --experiment dnn-5x100 --estimator tf.estimator.DNNClassifier \\
        --hidden-layers 100/100/100/100/100 --steps 7500 --batch-size 128 --epochs 500 --data-path s3://cimldatasets
    """
    if options.force:
        raise CimlError("--force: a stored experiment cannot change, as results refer to it; choose another name")
    _define(options.experiment, options.data_path, parameters)


class ShowOptions(S3Environment, Data, Json):
    """Options of ``ciml experiment show``.

    Attributes:
      json: JSON output of the stored experiment and results.
    """

    name: str | None = argument(required=False)


@make_command("show")
def show(options: ShowOptions) -> None:
    """Show an experiment and its results.

    Without NAME it lists the names of all experiments.

    \b
    Example:
      ciml experiment show wide --data-path DATA
      ciml experiment show --data-path DATA
    """
    from ciml.training.experiments.results import experiment_names, load_experiment, results_of

    name = options.name
    stored = options.root.experiments
    if name is None:
        names = experiment_names(stored)
        click.echo(json.dumps(names) if options.json else "\n".join(names) or f"no experiments in {stored.url()}")
        return
    experiment = load_experiment(stored, name)
    results = results_of(stored, name)
    if options.json:
        click.echo(json.dumps({"experiment": experiment.to_json(), "results": results}, sort_keys=True))
        return
    defaults = type(experiment)().to_json()
    for key, value in experiment.to_json().items():
        if key in ("name", "estimator") or value != defaults.get(key):
            click.echo(f"{key:<15} {json.dumps(value) if isinstance(value, dict) else value}")
    for result in results:
        click.echo("\n".join(result_lines(result)))
    if not results:
        train_line = f"ciml experiment train --experiment {name} --dataset NAME --data-path {options.data_path}"
        click.echo(f"not trained yet: {train_line}")


class CompareOptions(S3Environment, Data, Json):
    """Options of ``ciml experiment compare``.

    Attributes:
      dataset: Data set of the results. [default: the only one, or that of DATASET/EXPERIMENT]
      csv: File of the rows as CSV; '-' for standard output.
      json: JSON output, an array of rows.
    """

    experiments: tuple[str, ...] = argument("[EXPERIMENT]…", many=True, required=False)
    dataset: str | None = option(metavar="NAME")
    csv: str | None = option(metavar="FILE")


@make_command("compare")
def compare(options: CompareOptions) -> None:
    """Compare experiments on the same test runs.

    It shows the latest result of each EXPERIMENT, or DATASET/EXPERIMENT, on held-out runs, and its difference to the
    first one, run by run, with a 95 % interval. Without EXPERIMENT it takes all of the data set, the most accurate
    first. Results with other test runs than the first are marked and not compared. A sentence says so if one number of
    a run is right more often than every experiment.

    \b
    Example:
      ciml experiment compare forest dnn-5x100 --dataset cpu-load --data-path DATA
      ciml experiment compare --dataset cpu-load --csv results.csv --data-path DATA
      ciml experiment compare cpu-10s/forest cpu-1min/forest --json --data-path DATA
    """
    from ciml.training.experiments.comparison import by_accuracy
    from ciml.training.experiments.comparison import compare as compare_results
    from ciml.training.experiments.results import named_results

    if options.csv == "-" and options.json:
        raise click.UsageError("--csv - and --json both print to standard output; give one")
    results = named_results(options.root.experiments, options.experiments, options.dataset)
    comparison = compare_results(results if options.experiments else by_accuracy(results))
    records = comparison.records()
    if options.csv is not None:
        _write_csv(records, options.csv)
    if options.csv != "-":
        options.show(records, partial(_print_comparison, comparison.beaten))


def _write_csv(records: Sequence[Record], file: str) -> None:
    import csv

    with click.open_file(file, "w", encoding="utf-8", atomic=file != "-") as out:
        writer = csv.DictWriter(out, list(records[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(records)


def _print_comparison(beaten: str, records: Sequence[Record]) -> None:
    datasets = {record["dataset"] for record in records}
    f1_of = {record["f1_of"] for record in records}
    f1 = "F1 of failed, or macro F1"
    if len(f1_of) == 1:
        f1 = "macro F1" if f1_of == {"macro"} else "F1 of failed"
    first, *later = records
    title = f"{first['runs']:,} test runs of {', '.join(sorted(datasets))}"
    numbers = ["accuracy", f1, "ROC-AUC", "base rate", "one number", "to the first", "by chance"]
    rows = [_row(record, with_dataset=len(datasets) > 1, is_first=record is first) for record in records]
    print_table(["experiment", *numbers], rows, title=title, right=numbers)
    lines = ["intervals of 95 %; to the first: difference of the accuracies, run by run"]
    lines += [f"{record['experiment']}: not compared, {record['note']}" for record in later if record["note"]]
    click.echo("\n".join([*lines, beaten] if beaten else lines))


def _row(record: Record, *, with_dataset: bool, is_first: bool) -> list[Any]:
    name = f"{record['dataset']}/{record['experiment']}" if with_dataset else record["experiment"]
    chance = ""
    if record["mcnemar"] is not None:
        chance = "< 0.001" if record["mcnemar"] < 0.001 else _number(record["mcnemar"])
    return [
        name,
        _with_interval(record, "accuracy"),
        _with_interval(record, "f1"),
        _with_interval(record, "roc_auc"),
        record["base_rate"],
        f"{_number(record['baseline_accuracy'])}\n{record['baseline']}" if record["baseline"] else "–",
        "the first" if is_first else _with_interval(record, "difference", "+.3f"),
        chance,
    ]


def _with_interval(record: Record, name: str, form: str = ".3f") -> str:
    value, low, high = (record[key] for key in (name, f"{name}_low", f"{name}_high"))
    if value is None or low is None:
        return _number(value, form)
    return f"{value:{form}}\n{low:{form}} to {high:{form}}"


def _number(value: float | None, form: str = ".3f") -> str:
    return "–" if value is None else f"{value:{form}}"


class ReportOptions(OutputOptions, Data):
    """Options of ``ciml experiment report``.

    Attributes:
      datasets: Data set of the results; may be repeated. [default: all]
    """

    experiments: tuple[str, ...] = argument("[EXPERIMENT]…", many=True, required=False)
    datasets: tuple[str, ...] = repeated(metavar="NAME")


@make_command("report")
def report(options: ReportOptions) -> None:
    """Write HTML reports of experiments.

    A report has the figures of each EXPERIMENT (default all) with intervals next to the baselines, confusion, errors by
    class, curves, calibration, learning, jobs and providers, folds, and other data sets. A single result is index.html
    in --output (default EXPERIMENT-report, DATASET-report or experiments-report). Of several results, index.html
    compares them, and DATASET/EXPERIMENT/index.html is the page of each. Pages are self-contained, with plots as PNG
    and SVG next to them.

    \b
    Example:
      ciml experiment report dnn-5x100 --dataset cpu-load --data-path DATA
      ciml experiment report dnn-5x100 forest --dataset cpu-load --output s3://reports/cpu-load --data-path DATA
    """
    from ciml.reports.experiments.render import report_experiments

    experiments = options.experiments
    datasets = options.datasets
    name = experiments[0] if len(experiments) == 1 else datasets[0] if len(datasets) == 1 else "experiments"
    stored = options.root.experiments
    folder = options.output or f"{name}-report"
    with progress_bar("drawing") as progress:
        page = report_experiments(stored, experiments, datasets, folder, progress=progress)
    click.echo(page)


@click.group("experiment", commands=[define, train, show, compare, report, sweep])
def command() -> None:
    """Define, train and compare experiments.

    An experiment is an estimator and its hyper-parameters under a name. To train a model for serving, see ciml refresh.

    \b
    Example:
      ciml experiment define dnn-5x100 --hidden-layers 100/100/100/100/100 --epochs 500 --data-path DATA
      ciml experiment train --experiment dnn-5x100 --dataset cpu-load --data-path DATA
      ciml experiment show dnn-5x100 --data-path DATA
      ciml experiment compare --dataset cpu-load --data-path DATA
      ciml experiment report dnn-5x100 --data-path DATA
      ciml experiment sweep examples/sweep.toml --data-path DATA
    """
