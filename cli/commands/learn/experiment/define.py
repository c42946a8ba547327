"""``ciml experiment define``, and ``ciml-setup-experiment`` of the talk."""

from __future__ import annotations

import re
from typing import Any

import click

from ciml.cli.options import data_path_option, s3_options, stacked
from ciml.errors import CimlError

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

    found: dict[str, Any] = {}
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
        found[match[1]] = read
    return found or None


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

    given = {key: value for key, value in options.items() if value is not None}
    if "optimizer" in given:
        # the proximal one without penalties, which it has no options for, is Adagrad
        given["optimizer"] = given["optimizer"].lower().removeprefix("proximal")
    experiment = Experiment.from_json({"name": name, **_TALK.get(given["estimator"], {}), **given})
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
