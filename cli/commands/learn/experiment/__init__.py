"""``ciml experiment``: define, show, compare and report experiments; `train` has the commands that train."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

import click

from ciml.cli.commands.data.plot import output_option
from ciml.cli.commands.learn.experiment.train import sweep, train
from ciml.cli.options import data_path_option, s3_options, stacked
from ciml.cli.progress import progress_bar
from ciml.cli.tables import print_table
from ciml.errors import CimlError
from ciml.training.experiments.text import result_lines

Record = Mapping[str, Any]

DEFAULT_ESTIMATOR = "tf.estimator.DNNClassifier"
#: Defaults of the talk's estimators, which differ from this project's: its names keep their training.
_TALK: dict[str, dict[str, Any]] = {
    "tf.estimator.DNNClassifier": {"optimizer": "adagrad", "learning_rate": 0.05, "l2": 0.0}
}
_OPTIMIZERS = ("Adagrad", "Adam", "AdamW", "Ftrl", "ProximalAdagrad", "RMSProp", "SGD")
_PARAMETER = re.compile(r"([a-z_]+)=(.*)")


def _parameters(ctx: click.Context, param: click.Parameter, values: tuple[str, ...]) -> dict[str, Any] | None:
    """Parse ``NAME=VALUE`` pairs; a value is a number, true, false, none or a string."""
    import json

    parameters: dict[str, Any] = {}
    for value in values:
        match = _PARAMETER.fullmatch(value)
        if match is None:
            raise click.BadParameter(f"{value!r} is not NAME=VALUE", ctx, param)
        try:
            read = json.loads(
                {"None": "null", "none": "null", "True": "true", "False": "false"}.get(match[2], match[2])
            )
        except ValueError:
            read = match[2]
        parameters[match[1]] = read
    return parameters or None


hyper_parameters = stacked(
    click.option(
        "--estimator",
        default=DEFAULT_ESTIMATOR,
        help="Estimator: dnn, cnn, gru, svm, random_forest or hist_gradient_boosting. tf.estimator.DNNClassifier is"
        " dnn with Adagrad, learning rate 0.05 and no penalty; tf.contrib.learn.SVM is svm.",
    ),
    click.option(
        "--hidden-layers", metavar="N/N/…", help="Units (cnn: filters) of each hidden layer, such as 100/100."
    ),
    click.option("--steps", type=click.IntRange(1), help="Maximum number of batches."),
    click.option("--batch-size", type=click.IntRange(1), help="Runs of a batch."),
    click.option("--epochs", type=click.IntRange(1), help="Maximum passes over the training runs."),
    click.option("--optimizer", type=click.Choice(_OPTIMIZERS, case_sensitive=False), help="Optimizer of a network."),
    click.option("--learning-rate", type=click.FloatRange(0, min_open=True), help="Initial learning rate."),
    click.option("--schedule", type=click.Choice(["constant", "cosine"]), help="Schedule of the learning rate."),
    click.option(
        "--activation", type=click.Choice(["relu", "gelu", "tanh", "elu"]), help="Activation of the hidden layers."
    ),
    click.option(
        "--dropout", type=click.FloatRange(0, 1, max_open=True), help="Dropout rate before each hidden layer."
    ),
    click.option("--l2", type=click.FloatRange(0), help="L2 penalty of the weights."),
    click.option("--batch-norm", is_flag=True, default=None, help="Batch normalisation before each layer."),
    click.option("--kernel-size", type=click.IntRange(1), help="Kernel size of a convolution, in windows."),
    click.option(
        "--early-stopping",
        type=click.IntRange(1),
        metavar="EPOCHS",
        help="Epochs without a lower dev loss after which training stops.",
    ),
    click.option(
        "--class-weights",
        type=click.Choice(["none", "balanced"]),
        help="Class weights; balanced weights rare classes higher.",
    ),
    click.option("--seed", type=click.IntRange(0), help="Random seed of weights, order and dropout."),
    click.option(
        "-p",
        "--parameter",
        "parameters",
        multiple=True,
        metavar="NAME=VALUE",
        callback=_parameters,
        help="Parameter of scikit-learn's estimator; may be repeated.",
    ),
)


def _define(name: str, data_path: str, options: dict[str, Any]) -> None:
    from ciml.data_root import DataRoot
    from ciml.training.experiment import Experiment
    from ciml.training.experiments.trials import create_experiment, experiment_store

    values = {key: value for key, value in options.items() if value is not None}
    if "optimizer" in values:
        # the proximal one without penalties, which it has no options for, is Adagrad
        values["optimizer"] = values["optimizer"].lower().removeprefix("proximal")
    experiment = Experiment.from_json({"name": name, **_TALK.get(values["estimator"], {}), **values})
    stored = DataRoot.open(data_path).experiments
    new = create_experiment(stored, experiment)
    where = experiment_store(stored, name).url("experiment.json")
    click.echo(f"{name}: {experiment.estimator}, {'stored in' if new else 'as it is already in'} {where}")
    click.echo(f"train it by: ciml experiment train --experiment {name} --dataset NAME --data-path {data_path}")


@click.command("define")
@click.argument("name")
@hyper_parameters
@data_path_option()
@s3_options
def define(name: str, data_path: str, **options: Any) -> None:
    """Define an experiment.

    It stores an estimator and its hyper-parameters under NAME. The same definition again changes nothing; a different
    one under NAME is an error. Defaults are listed in docs/training.md.

    \b
    Example:
      ciml experiment define wide --hidden-layers 100/100 --epochs 500 --batch-size 128 --data-path DATA
      ciml experiment define forest --estimator random_forest -p n_estimators=500 --data-path DATA
    """
    _define(name, data_path, options)


@click.command("ciml-setup-experiment")
@click.option("--experiment", "name", default="experiment", help="Name of the experiment.")
@hyper_parameters
@click.option("--force/--no-force", default=False, hidden=True, help="Option of the talk; not supported.")
@data_path_option()
@s3_options
def setup(name: str, data_path: str, force: bool, **options: Any) -> None:
    """Define an experiment.

    It stores an estimator and its hyper-parameters, as ciml experiment define does, with the options of the talk.

    \b
    Example:
      ciml-setup-experiment --experiment dnn-5x100 --estimator tf.estimator.DNNClassifier \\
        --hidden-layers 100/100/100/100/100 --steps 7500 --batch-size 128 --epochs 500 --data-path s3://cimldatasets
    """
    if force:
        raise CimlError("--force: a stored experiment cannot change, as results refer to it; choose another name")
    _define(name, data_path, options)


@click.command("show")
@click.argument("name", required=False)
@click.option("--json", "as_json", is_flag=True, help="JSON output of the stored experiment and results.")
@data_path_option()
@s3_options
def show(name: str | None, as_json: bool, data_path: str) -> None:
    """Show an experiment and its results.

    Without NAME it lists the names of all experiments.

    \b
    Example:
      ciml experiment show wide --data-path DATA
      ciml experiment show --data-path DATA
    """
    from ciml.data_root import DataRoot
    from ciml.training.experiments.trials import experiment_names, load_experiment, results_of

    stored = DataRoot.open(data_path).experiments
    if name is None:
        names = experiment_names(stored)
        click.echo(json.dumps(names) if as_json else "\n".join(names) or f"no experiments in {stored.url()}")
        return
    experiment = load_experiment(stored, name)
    results = results_of(stored, name)
    if as_json:
        click.echo(json.dumps({"experiment": experiment.to_json(), "results": results}, sort_keys=True))
        return
    defaults = type(experiment)().to_json()
    for key, value in experiment.to_json().items():
        if key in ("name", "estimator") or value != defaults[key]:
            click.echo(f"{key:<15} {value}")
    for result in results:
        click.echo("\n".join(result_lines(result)))
    if not results:
        click.echo(f"not trained yet: ciml experiment train --experiment {name} --dataset NAME --data-path {data_path}")


@click.command("compare")
@click.argument("experiments", nargs=-1, metavar="[EXPERIMENT]…")
@click.option(
    "--dataset", metavar="NAME", help="Data set of the results.  [default: the only one, or that of DATASET/EXPERIMENT]"
)
@click.option("--csv", "csv_file", metavar="FILE", help="File of the rows as CSV; '-' for standard output.")
@click.option("--json", "as_json", is_flag=True, help="JSON output, an array of rows.")
@data_path_option()
@s3_options
def compare(
    experiments: tuple[str, ...], dataset: str | None, csv_file: str | None, as_json: bool, data_path: str
) -> None:
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
    import json

    from ciml.data_root import DataRoot
    from ciml.training.experiments.compare import by_accuracy
    from ciml.training.experiments.compare import compare as compare_results
    from ciml.training.experiments.results import named_results

    if csv_file == "-" and as_json:
        raise click.UsageError("--csv - and --json both print to standard output; give one")
    results = named_results(DataRoot.open(data_path).experiments, experiments, dataset)
    comparison = compare_results(results if experiments else by_accuracy(results))
    records = comparison.records()
    if csv_file is not None:
        _write_csv(records, csv_file)
    if as_json:
        click.echo(json.dumps(records, indent=2))
    elif csv_file != "-":
        _print_comparison(records)
        if comparison.beaten:
            click.echo(comparison.beaten)


def _write_csv(records: Sequence[Record], file: str) -> None:
    import csv

    with click.open_file(file, "w", encoding="utf-8", atomic=file != "-") as out:
        writer = csv.DictWriter(out, list(records[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(records)


def _print_comparison(records: Sequence[Record]) -> None:
    datasets = {record["dataset"] for record in records}
    wide = len(datasets) > 1
    f1_of = {record["f1_of"] for record in records}
    f1 = {("macro",): "macro F1", ("failed",): "F1 of failed"}.get(tuple(sorted(f1_of)), "F1 of failed, or macro F1")
    first, *later = records
    title = f"{first['runs']:,} test runs of {', '.join(sorted(datasets))}"
    numbers = ["accuracy", f1, "ROC-AUC", "base rate", "one number", "to the first", "by chance"]
    rows = [_row(record, wide=wide, first=record is first) for record in records]
    print_table(["experiment", *numbers], rows, title=title, right=numbers)
    lines = ["intervals of 95 %; to the first: difference of the accuracies, run by run"]
    lines += [f"{record['experiment']}: not compared, {record['note']}" for record in later if record["note"]]
    click.echo("\n".join(lines))


def _row(record: Record, *, wide: bool, first: bool) -> list[str]:
    name = f"{record['dataset']}/{record['experiment']}" if wide else record["experiment"]
    chance = record["mcnemar"]
    return [
        name,
        _within(record, "accuracy"),
        _within(record, "f1"),
        _within(record, "roc_auc"),
        _number(record["base_rate"]),
        f"{_number(record['baseline_accuracy'])}\n{record['baseline']}" if record["baseline"] else "–",
        "the first" if first else _within(record, "difference", "+.3f"),
        "" if chance is None else "< 0.001" if chance < 0.001 else _number(chance),
    ]


def _within(record: Record, name: str, form: str = ".3f") -> str:
    value, low, high = (record[key] for key in (name, f"{name}_low", f"{name}_high"))
    if value is None or low is None:
        return _number(value, form)
    return f"{value:{form}}\n{low:{form}} to {high:{form}}"


def _number(value: float | None, form: str = ".3f") -> str:
    return "–" if value is None else f"{value:{form}}"


@click.command("report")
@click.argument("experiments", nargs=-1, metavar="[EXPERIMENT]…")
@click.option(
    "--dataset",
    "datasets",
    multiple=True,
    metavar="NAME",
    help="Data set of the results; may be repeated.  [default: all]",
)
@data_path_option()
@output_option
@s3_options
def report(experiments: tuple[str, ...], datasets: tuple[str, ...], data_path: str, output: str | None) -> None:
    """Write HTML reports of experiments.

    A report has the figures of each EXPERIMENT (default all) with intervals beside the baselines, confusion, errors by
    class, curves, calibration, learning, jobs and providers, folds, and other data sets. A single result is index.html
    in --output (default EXPERIMENT-report, DATASET-report or experiments-report). Of several results, index.html
    compares them, and DATASET/EXPERIMENT/index.html is the page of each. Pages are self-contained, with plots as PNG
    and SVG beside them.

    \b
    Example:
      ciml experiment report dnn-5x100 --dataset cpu-load --data-path DATA
      ciml experiment report dnn-5x100 forest --dataset cpu-load --output s3://reports/cpu-load --data-path DATA
    """
    from ciml.data_root import DataRoot
    from ciml.reports.experiments.render import report_experiments

    folder = output or default_folder(experiments, datasets)
    with progress_bar("drawing") as progress:
        page = report_experiments(
            DataRoot.open(data_path).experiments, experiments, datasets, folder, progress=progress
        )
    click.echo(page)


def default_folder(experiments: Sequence[str], datasets: Sequence[str]) -> str:
    """Return the default folder of a report, named after a single experiment or data set."""
    name = experiments[0] if len(experiments) == 1 else datasets[0] if len(datasets) == 1 else "experiments"
    return f"{name}-report"


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
