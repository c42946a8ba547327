"""``ciml predict FILE…``: predictions for logs, by a model in this process."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from cli.options import data_path_option
from cli.progress_bar import progress_bar
from cli.tables import print_table

if TYPE_CHECKING:
    from ciml.api.model import Prediction

#: Exit code where a file cannot be used; the others are predicted.
_UNUSABLE = 2


@click.command("files")
@click.argument("files", nargs=-1, metavar="FILE…")
@click.option("--model", required=True, metavar="NAME", help="Model to predict with.")
@click.option(
    "--version", type=click.IntRange(1), metavar="N", help="Version of the model.  [default: that of --label]"
)
@click.option("--label", metavar="LABEL", help="Label of the version.  [default: stable]")
@click.option("--zone", metavar="ZONE", help="Zone of logs that name none, such as Europe/Berlin or +02:00.")
@click.option("--json", "as_json", is_flag=True, help="JSON output, one object a line.")
@data_path_option()
def files(
    files: tuple[str, ...],
    model: str,
    version: int | None,
    label: str | None,
    zone: str | None,
    as_json: bool,
    data_path: str,
) -> int:
    """Predict for logs.

    FILE… are plain or gzip. The exit code is 2 if one of them cannot be used; the others are predicted.

    \b
    Example:
      ciml predict dstat.csv.gz --model provider --data-path data
    """
    if not files:
        raise click.UsageError("no FILE: name the logs to predict; the stream is ciml predict stream")
    if version is not None and label is not None:
        raise click.UsageError("--version and --label exclude each other")
    from ciml.api import open as open_data

    loaded = open_data(data_path).model(model, version=version, label=label or "stable")
    found: list[Prediction] = []
    with progress_bar("predicting") as progress:
        for one in loaded.each(map(Path, files), zone=zone):
            found.append(one)
            progress(len(found), len(files))
    if as_json:
        for file, one in zip(files, found, strict=True):
            facts = {name: value for name, value in one.to_json().items() if name != "run"}
            click.echo(json.dumps({"file": file, "model": model, "version": loaded.version, **facts}))
    else:
        _print(files, found, f"{model}, version {loaded.version}")
    return _UNUSABLE if any(one.class_name is None for one in found) else 0


def _print(files: Sequence[str], found: Sequence[Prediction], title: str) -> None:
    headings = ["file", "class", "probability", "windows"] + ["remark"] * any(one.remark for one in found)
    rows = []
    for file, one in zip(files, found, strict=True):
        probability = "" if one.probability is None else f"{one.probability:.3f}"
        windows = f"{one.n_windows:,}" if one.n_windows else ""
        rows.append((file, one.class_name or "", probability, windows, one.remark)[: len(headings)])
    print_table(headings, rows, title=title, right=["probability", "windows"])
