"""``ciml experiment define``, and ``ciml-setup-experiment`` of the talk."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, TypeVar

import click

from ciml.errors import CimlError
from cli.options import data_path_option, home_option
from cli.s3_options import s3_options

F = TypeVar("F", bound=Callable[..., Any])

DEFAULT_ESTIMATOR = "tf.estimator.DNNClassifier"
#: What the estimators of the talk meant by themselves: its names mean the same training, not this project's defaults.
_TALK: dict[str, dict[str, Any]] = {
    "tf.estimator.DNNClassifier": {"optimizer": "adagrad", "learning_rate": 0.05, "l2": 0.0}
}
_OPTIMIZERS = ("Adagrad", "Adam", "AdamW", "Ftrl", "ProximalAdagrad", "RMSProp", "SGD")
_PARAMETER = re.compile(r"([a-z_]+)=(.*)")


def _parameters(ctx: click.Context, param: click.Parameter, values: tuple[str, ...]) -> dict[str, Any] | None:
    """``NAME=VALUE`` pairs; a value is a number, true, false or none, or else a word."""
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


def _of(options: tuple[Callable[[F], F], ...]) -> Callable[[F], F]:
    def decorate(command: F) -> F:
        for option in reversed(options):
            command = option(command)
        return command

    return decorate


hyper_parameters = _of(
    (
        click.option(
            "--estimator",
            default=DEFAULT_ESTIMATOR,
            show_default=True,
            help="dnn, cnn, gru, svm, random_forest or hist_gradient_boosting; tf.estimator.DNNClassifier is dnn with"
            " Adagrad at 0.05 and no penalty, tf.contrib.learn.SVM is svm.",
        ),
        click.option("--hidden-layers", metavar="N/N/…", help="Units (cnn: filters) of each hidden layer."),
        click.option("--steps", type=click.IntRange(1), help="At most so many batches."),
        click.option("--batch-size", type=click.IntRange(1), help="Runs a step."),
        click.option("--epochs", type=click.IntRange(1), help="At most so many passes over the training runs."),
        click.option("--optimizer", type=click.Choice(_OPTIMIZERS, case_sensitive=False), help="Of a network."),
        click.option("--learning-rate", type=click.FloatRange(0, min_open=True), help="At the start."),
        click.option("--schedule", type=click.Choice(["constant", "cosine"]), help="Of the learning rate."),
        click.option("--activation", type=click.Choice(["relu", "gelu", "tanh", "elu"]), help="Of hidden layers."),
        click.option("--dropout", type=click.FloatRange(0, 1, max_open=True), help="Before each hidden layer."),
        click.option("--l2", type=click.FloatRange(0), help="Weight of the squared weights in the loss."),
        click.option("--batch-norm", is_flag=True, default=None, help="Normalise over the batch before each layer."),
        click.option("--kernel-size", type=click.IntRange(1), help="Windows that a convolution sees at once."),
        click.option(
            "--early-stopping",
            type=click.IntRange(1),
            metavar="EPOCHS",
            help="End when the loss on the dev runs has not fallen for so many epochs.",
        ),
        click.option("--class-weights", type=click.Choice(["none", "balanced"]), help="balanced: for rare failures."),
        click.option("--seed", type=click.IntRange(0), help="Of weights, order and dropout."),
        click.option(
            "-p",
            "--parameter",
            "parameters",
            multiple=True,
            metavar="NAME=VALUE",
            callback=_parameters,
            help="A parameter of scikit-learn's estimator, by its name there; may be repeated.",
        ),
    )
)


def _define(name: str, data_path: str, options: dict[str, Any]) -> None:
    from ciml.storage.open import open_store
    from training.experiment import Experiment
    from training.experiments.trials import create_experiment, experiment_store

    given = {key: value for key, value in options.items() if value is not None}
    if "optimizer" in given:
        # without penalties of its own, which it was never given, the proximal one is Adagrad
        given["optimizer"] = given["optimizer"].lower().removeprefix("proximal")
    experiment = Experiment.from_json({"name": name, **_TALK.get(given["estimator"], {}), **given})
    data = open_store(data_path)
    new = create_experiment(data, experiment)
    where = experiment_store(data, name).url("experiment.json")
    click.echo(f"{name}: {experiment.estimator}, {'stored in' if new else 'as it is already in'} {where}")
    click.echo(f"train it by: ciml experiment train --experiment {name} --dataset NAME --data-path {data_path}")


@click.command("define", short_help="Store an experiment under a name.")
@click.argument("name")
@hyper_parameters
@data_path_option()
@home_option
@s3_options
def define(name: str, data_path: str, **options: Any) -> None:
    """Store the experiment NAME: an estimator and its hyper-parameters.

    The same again changes nothing; another one under the same name is an error. What is not given has the default that
    docs/training.md tells.

    \b
    Example:
      ciml experiment define wide --hidden-layers 100/100 --epochs 500 --batch-size 128 --data-path DATA
      ciml experiment define forest --estimator random_forest -p n_estimators=500 --data-path DATA
    """
    options.pop("home")
    _define(name, data_path, options)


@click.command("ciml-setup-experiment")
@click.option("--experiment", "name", default="experiment", show_default=True, help="The experiment's name.")
@hyper_parameters
@click.option("--force/--no-force", default=False, hidden=True, help="Of the talk; refused.")
@data_path_option()
@home_option
@s3_options
def setup(name: str, data_path: str, force: bool, **options: Any) -> None:
    """Store an experiment: an estimator and its hyper-parameters. As ciml experiment define, in the words of the talk.

    \b
    Example:
      ciml-setup-experiment --experiment dnn-5x100 --estimator tf.estimator.DNNClassifier \\
        --hidden-layers 100/100/100/100/100 --steps 7500 --batch-size 128 --epochs 500 --data-path s3://cimldatasets
    """
    if force:
        raise CimlError("--force: a stored experiment is never changed, for results name it; take another name")
    options.pop("home")
    _define(name, data_path, options)
