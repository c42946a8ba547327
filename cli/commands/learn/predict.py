"""``ciml predict``: predictions for files by a model in this process, and for the stream of finished runs."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from ciml.cli.command import DefaultGroup, make_command
from ciml.cli.options import JsonLines, require_data
from ciml.cli.output import by_frequency, print_table, progress_bar
from ciml.cli.running import PATIENCE_S, Running, find_own_modules
from ciml.errors import CimlError
from ciml.events.outcomes import OUTCOMES
from ciml.options import argument, flag, option, repeated
from ciml.services.options import PredictOptions

if TYPE_CHECKING:
    from ciml.api import Client, Model, Prediction
    from ciml.events.records import OutcomeWord
    from ciml.services.decide import ServiceProgress
    from ciml.verdict_rules import Verdict

#: Reasons of files below a folder that are not logs: they are skipped.
_NO_LOG = frozenset({"not_telemetry", "empty_telemetry"})
#: Exit code where a file cannot be used; the others are predicted.
_UNUSABLE = 2


class FilesOptions(JsonLines):
    """Options of ``ciml predict`` for files.

    Attributes:
      model: Model to predict with; --server may name it instead.
      server: Address of a model server instead of DATA: http://HOST:PORT[/v1/models/NAME] or grpc://HOST:PORT[/NAME].
      version: Version of the model. [default: that of --label]
      label: Label of the version. [default: stable]
      candidate: Predict with the last candidate, even if the gate rejected it.
      allow_modules: Module that a candidate's estimator may import; may be repeated.
      print_request: Print the JSON body of a REST request instead.
      zone: Zone of logs that name none, or an ambiguous one.
      job: Job of the runs, for a verdict.
      outcome: Outcome of the runs; a verdict is on failure or timeout.
      exit_code: Exit status of the runs' command.
    """

    files: tuple[str, ...] = argument("FILE…", many=True, required=False)
    model: str | None = option(metavar="NAME")
    data_path: str | None = option(kind="new data")  # checked where it is used: --server needs none
    server: str | None = option(metavar="URL")
    version: int | None = option(kind="count", metavar="N")
    label: str | None = option(metavar="LABEL")
    candidate: bool = flag()
    allow_modules: tuple[str, ...] = repeated(metavar="MODULE")
    print_request: bool = flag()
    zone: str | None = option(metavar="ZONE")
    job: str = option("", metavar="JOB")
    outcome: OutcomeWord | None = option(kind=click.Choice(sorted(OUTCOMES)))
    exit_code: int | None = option(kind=click.IntRange(-255, 255), metavar="N")

    def open_model(self) -> Model | Client:
        """Load the model, or connect to its server."""
        if self.version is not None and self.label is not None:
            raise click.UsageError("--version and --label exclude each other")
        if self.candidate and (self.server or self.label or self.version):
            raise click.UsageError("--candidate excludes --server, --version and --label: a candidate is not served")
        if self.server is not None:
            from ciml.api import Client

            return Client(self.server, self.model or "", version=self.version, label=self.label)
        for name, value in (("--model", self.model), ("--data-path", self.data_path)):
            if value is None:
                raise click.UsageError(f"Missing option '{name}'; or name a model server: --server URL")
        from ciml.api import open as open_data

        require_data(str(self.data_path))
        data = open_data(str(self.data_path))
        return data.model(
            str(self.model),
            version=self.version,
            label=self.label,
            candidate=self.candidate,
            allow_modules=self.allow_modules,
        )

    def run_facts(self) -> dict[str, Any]:
        """Return the arguments of a prediction about the runs."""
        from ciml.events.outcomes import EXIT_LABEL

        labels = {} if self.exit_code is None else {EXIT_LABEL: str(self.exit_code)}
        return {"zone": self.zone, "job": self.job, "outcome": self.outcome, "labels": labels}


@make_command("files")
def files(options: FilesOptions) -> int:
    """Predict for logs.

    FILE… are logs, plain or gzip, or folders of them. The exit code is 2 if one of them cannot be used; the others are
    predicted.

    \b
    Example:
      ciml predict dstat.csv.gz --model provider --data-path data
      ciml predict dstat.csv.gz --model cause --job unit --outcome failure --data-path data
      ciml predict logs --server http://127.0.0.1:8501 --model provider
    """
    if not options.files:
        raise click.UsageError("no FILE: name the logs to predict; the stream is ciml predict stream")
    logs = _Logs.named(options.files)
    if options.print_request and len(logs.paths) != 1:
        raise click.UsageError(f"--print-request takes one FILE, not {len(logs.paths)}")
    with options.open_model() as model:
        if options.print_request:
            click.echo(json.dumps(model.request(logs.paths[0], **options.run_facts()), separators=(",", ":")))
            return 0
        predictions: list[Prediction] = []
        with progress_bar("predicting") as progress:
            for prediction in model.each(logs.paths, **options.run_facts()):
                predictions.append(prediction)
                progress("logs", len(predictions), len(logs.paths))
    predictions, skipped = logs.without_other_files(predictions)
    if options.json:
        for prediction in predictions:
            facts = {name: value for name, value in prediction.to_json().items() if name != "run"}
            click.echo(json.dumps({"file": prediction.run, "model": model.name, "version": model.version, **facts}))
    elif predictions:
        version = str(model.candidate) if model.candidate else f"version {model.version}"
        _print_predictions(predictions, ", ".join(filter(None, [model.name, version, options.server])))
        for reason in model.candidate.reasons if model.candidate else ():
            click.echo(f"gate: {reason}")
    for line in skipped:
        click.echo(line, err=True)
    if not predictions:
        raise CimlError(f"no log in {', '.join(options.files)}")
    return _UNUSABLE if any(prediction.class_name is None for prediction in predictions) else 0


class _Logs(NamedTuple):
    """Files to predict.

    Attributes:
      paths: all files, in order.
      folders: the folder that a user named, by the index of each file below it.
    """

    paths: Sequence[Path]
    folders: Mapping[int, str]

    @classmethod
    def named(cls, names: Sequence[str]) -> _Logs:
        """Return files as they are, and all files below folders, sorted. Hidden files and folders are left out."""
        paths: list[Path] = []
        folders: dict[int, str] = {}
        for name in names:
            if not os.path.isdir(name):
                paths.append(Path(name))
                continue
            start = len(paths)
            for folder, subfolders, files in os.walk(name):  # does not follow links to folders
                subfolders[:] = sorted(subfolder for subfolder in subfolders if not subfolder.startswith("."))
                paths += [Path(folder, file) for file in sorted(files) if not file.startswith(".")]
            folders |= dict.fromkeys(range(start, len(paths)), name)
        return cls(paths, folders)

    def without_other_files(self, predictions: Sequence[Prediction]) -> tuple[list[Prediction], list[str]]:
        """Return the predictions without those of files below a folder that are not logs, and a line on these."""
        is_other = [
            index in self.folders and prediction.reason in _NO_LOG for index, prediction in enumerate(predictions)
        ]
        lines: list[str] = []
        for folder in dict.fromkeys(self.folders.values()):
            skipped = [predictions[index] for index, name in self.folders.items() if name == folder and is_other[index]]
            counts = Counter(prediction.reason.replace("_", " ") for prediction in skipped)
            reasons = ", ".join(f"{number:,} {reason}" for reason, number in by_frequency(counts))
            if skipped:
                example = f"for example {skipped[0].run}: {skipped[0].remark}"
                lines.append(f"{folder}: skipped {len(skipped):,} of its files ({reasons}), {example}")
        return [prediction for prediction, foreign in zip(predictions, is_other, strict=True) if not foreign], lines


def _print_predictions(predictions: Sequence[Prediction], title: str) -> None:
    columns: dict[str, list[Any]] = {
        "file": [prediction.run for prediction in predictions],
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
    With --candidate, the last candidate predicts in this process, also one that cannot be served, and no model server
    is needed. An interrupted stream continues from the last commit. To run it under a supervisor: ciml service start
    predict.

    \b
    Example:
      ciml predict stream --model provider --data-path data
      ciml predict stream --model provider --data-path data --once --engine micro-batches
      ciml predict stream --model provider --candidate --data-path data --engine micro-batches
    """
    find_own_modules()

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

    FILE… are logs, plain or gzip, or folders, whose other files are skipped. A pushed version of the model is loaded in
    this process, without a broker or a model server; its files are verified. With --server, any TensorFlow Serving
    predicts, and no data root is needed. Logs are prepared by the functions of the stream. One that cannot be used is
    a row with its reason, and the exit code is 2.

    \b
    Example:
      ciml predict dstat.csv.gz --model provider --data-path data
      ciml predict logs --model provider --json --data-path data
      ciml predict dstat.csv.gz --server http://127.0.0.1:8501 --model provider
      ciml predict dstat.csv.gz --model provider --candidate --data-path data
      ciml predict stream --model provider --data-path data
    """
