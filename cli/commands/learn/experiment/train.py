"""``ciml experiment train``, and ``ciml-train-model`` of the talk."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ciml.cli.options import data_path_option, learn_from_options, s3_options
from ciml.cli.progress import progress_bar
from ciml.errors import CimlError
from ciml.training.experiments.text import fold_lines, other_lines, result_lines

if TYPE_CHECKING:
    from ciml.training.experiments.trials import Trial


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

    data, policy = DataRoot.open(data_path), TrustPolicy.load(trust_policy)
    chosen = [load_experiment(data.experiments, experiment)] if experiment else [*map(experiment_of, estimators)]
    add(data.exclusions, read_lines(exclude))
    material = read_dataset(data.dataset(dataset), policy)
    materials = [read_dataset(data.dataset(name), policy) for name in others]
    for what in chosen:
        if estimators:
            create_experiment(data.experiments, what)
        with progress_bar(f"training {what.name}") as progress:
            trial = Trial(data.experiments, what, material, Path(tensorboard) if tensorboard else None, progress)
            if folds is not None:
                results = [trial.cross_validate(folds, hold_out, progress)]
            else:
                results = [trial.run(), *(trial.run_on(each) for each in materials)]
        for number, (found, new) in enumerate(results):
            lines = fold_lines if folds is not None else other_lines if number else result_lines
            _show(trial, found, new, as_json, lines(found))


def _show(trial: Trial, found: dict[str, Any], new: bool, as_json: bool, lines: list[str]) -> None:
    if as_json:
        import json

        click.echo(json.dumps(found, sort_keys=True))
        return
    for line in lines:
        click.echo(line)
    click.echo(f"  {'stored in' if new else 'as it is already in'} {trial.store.url()}")
