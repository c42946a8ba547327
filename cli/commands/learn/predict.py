"""``ciml predict``: predictions for files by a model in this process, and for the stream of finished runs."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ciml.cli.command import DefaultGroup, make_command
from ciml.cli.options import Data, JsonLines
from ciml.cli.output import print_table, progress_bar
from ciml.cli.running import PATIENCE_S, Running
from ciml.events.outcomes import OUTCOMES
from ciml.options import argument, option
from ciml.services.options import PredictOptions

if TYPE_CHECKING:
    from ciml.api.model import Prediction
    from ciml.events.records import OutcomeWord
    from ciml.services.decide import ServiceProgress
    from ciml.verdict_rules import Verdict

#: Exit code where a file cannot be used; the others are predicted.
_UNUSABLE = 2


class FilesOptions(JsonLines, Data):
    """Options of ``ciml predict`` for files.

    Attributes:
      model: Model to predict with.
      version: Version of the model. [default: that of --label]
      label: Label of the version. [default: stable]
      zone: Zone of logs that name none, or an ambiguous one.
      job: Job of the runs, for a verdict.
      outcome: Outcome of the runs; a verdict is on failure or timeout.
      exit_code: Exit status of the runs' command.
    """

    files: tuple[str, ...] = argument("FILE…", many=True, required=False)
    model: str = option(metavar="NAME", required=True)
    version: int | None = option(kind="count", metavar="N")
    label: str | None = option(metavar="LABEL")
    zone: str | None = option(metavar="ZONE")
    job: str = option("", metavar="JOB")
    outcome: OutcomeWord | None = option(kind=click.Choice(sorted(OUTCOMES)))
    exit_code: int | None = option(kind=click.IntRange(-255, 255), metavar="N")


@make_command("files")
def files(options: FilesOptions) -> int:
    """Predict for logs.

    FILE… are plain or gzip. The exit code is 2 if one of them cannot be used; the others are predicted.

    \b
    Example:
      ciml predict dstat.csv.gz --model provider --data-path data
      ciml predict dstat.csv.gz --model cause --job unit --outcome failure --data-path data
    """
    from ciml.events.outcomes import EXIT_LABEL

    if not options.files:
        raise click.UsageError("no FILE: name the logs to predict; the stream is ciml predict stream")
    if options.version is not None and options.label is not None:
        raise click.UsageError("--version and --label exclude each other")
    from ciml.api import open as open_data

    model = open_data(options.data_path).model(options.model, version=options.version, label=options.label or "stable")
    labels = {} if options.exit_code is None else {EXIT_LABEL: str(options.exit_code)}
    predictions: list[Prediction] = []
    with progress_bar("predicting") as progress:
        logs = map(Path, options.files)
        for prediction in model.each(logs, zone=options.zone, job=options.job, outcome=options.outcome, labels=labels):
            predictions.append(prediction)
            progress("logs", len(predictions), len(options.files))
    if options.json:
        for file, prediction in zip(options.files, predictions, strict=True):
            facts = {name: value for name, value in prediction.to_json().items() if name != "run"}
            click.echo(json.dumps({"file": file, "model": options.model, "version": model.version, **facts}))
    else:
        _print_predictions(options.files, predictions, f"{options.model}, version {model.version}")
    return _UNUSABLE if any(prediction.class_name is None for prediction in predictions) else 0


def _print_predictions(files: Sequence[str], predictions: Sequence[Prediction], title: str) -> None:
    columns: dict[str, list[Any]] = {
        "file": list(files),
        "class": [prediction.class_name or "" for prediction in predictions],
        "probability": ["" if prediction.probability is None else prediction.probability for prediction in predictions],
        "windows": [prediction.n_windows or "" for prediction in predictions],
    }
    cells = [_verdict_cells(prediction.verdict) if prediction.verdict else {} for prediction in predictions]
    for name in dict.fromkeys(name for cell in cells for name in cell):
        columns[name] = [cell.get(name, "") for cell in cells]
    if any(prediction.remark for prediction in predictions):
        columns["remark"] = [prediction.remark for prediction in predictions]
    print_table(list(columns), zip(*columns.values(), strict=True), title=title)


def _verdict_cells(verdict: Verdict) -> dict[str, str]:
    """Return the cells of a verdict: the cause, the base rate of the most probable class, and whether to retry."""
    possible = " or ".join(verdict.set) or "none is likely"
    if verdict.outside is not None:
        possible = f"unlike the learned runs by {verdict.outside.feature}"
    likely = max(verdict.probabilities, key=lambda name: verdict.probabilities[name])
    return {
        "verdict": verdict.cause if verdict.cause in verdict.set else f"{verdict.cause} ({possible})",
        "base rate": f"{likely} {verdict.base_rate[likely]:.2f} of {verdict.runs:,} runs",
        "retry": verdict.retry,
    }


@make_command("stream")
def stream(options: PredictOptions, running: Running) -> None:
    """Predict for finished runs as they arrive.

    Ingest announces the runs, trusted or not. Each run is prepared by the definition of the served version, predicted
    once by it, committed to DATA/predictions with its offset, and published. Without a served version nothing is read.
    An interrupted stream continues from the last commit. To run it under a supervisor: ciml service start
    predict.

    \b
    Example:
      ciml predict stream --model provider --data-path data
      ciml predict stream --model provider --data-path data --once --engine micro-batches
    """

    def text(progress: ServiceProgress, word: str) -> str:
        counts = ", ".join(f"{number:,} {unit}" for unit, number in progress.facts["counts"].items())
        return f"{counts or 'no predictions yet'}; {progress.behind:,} runs to go; {word}"

    running.stream(options, text, patience_s=PATIENCE_S if running.until is None else 0.0)


class _Group(DefaultGroup):
    """Names the stream where its options are given to `files`, which had its name in earlier versions."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if args and args[0] not in self.commands:
            file_options = {name for param in files.params for name in param.opts}
            moved = {name for param in stream.params for name in param.opts} - file_options
            for argument in args:
                if (name := argument.partition("=")[0]) in moved:
                    raise click.UsageError(
                        f"{name}: is an option of the stream; use ciml predict stream, or ciml service start predict",
                        ctx,
                    )
        return super().parse_args(ctx, args)


@click.group("predict", cls=_Group, default="files", commands=[files, stream])
def command() -> None:
    """Predict for logs, or for a stream of runs.

    FILE… are logs, plain or gzip. A pushed version of the model is loaded in this process, without a broker or a model
    server; its files are verified. Logs are prepared by the functions of the stream. One that cannot be used is a row
    with its reason, and the exit code is 2.

    \b
    Example:
      ciml predict dstat.csv.gz --model provider --data-path data
      ciml predict logs/*.gz --model provider --json --data-path data
      ciml predict stream --model provider --data-path data
    """
