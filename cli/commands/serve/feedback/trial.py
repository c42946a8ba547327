"""``ciml feedback try``: the messages that predictions would become."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import click

from ciml.cli.commands.serve.feedback.options import config_option
from ciml.cli.options import data_path_option
from ciml.errors import CimlError


@click.command("try")
@click.argument("predictions", required=False, type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--run", "run_id", metavar="RUN", help="Run id whose stored predictions are tried instead of a file.")
@config_option
@data_path_option()
@click.option("--json", "as_json", is_flag=True, help="JSON output, one object a line.")
def command(predictions: Path | None, run_id: str | None, config: str, data_path: str, as_json: bool) -> None:
    """Show messages without sending them.

    PREDICTIONS is a file of JSON lines as on the topic. It applies the policy, computes the evidence from the stored
    runs and prints each message, or the reason for silence; of a model in shadow both. It reads no secret and calls no
    system, so changes that are merged, outdated or muted by a word are not recognised.

    \b
    Example:
      ciml feedback try --run zuul~5f0c~1 --config feedback.toml --data-path data
      ciml feedback try predictions.jsonl --config feedback.toml --data-path data
    """
    from ciml.data_root import DataRoot
    from ciml.services.feedback import try_messages
    from ciml.verdicts.feedback.config import load_feedback

    if (predictions is None) == (run_id is None):
        raise click.UsageError("give either a file of PREDICTIONS or --run")
    data, feedback = DataRoot.open(data_path), load_feedback(config)
    records = _stored(data_path, run_id) if run_id is not None else _lines(predictions or Path())
    for trial in try_messages(data, feedback, records):
        _print(trial, as_json)


def _print(trial: Any, as_json: bool) -> None:
    import json

    if as_json:
        click.echo(json.dumps(trial.to_json(), ensure_ascii=False))
        return
    if trial.reason:
        detail = f" ({trial.detail})" if trial.detail else ""
        click.echo(f"{', '.join(trial.runs)}: silent: {trial.reason}{detail}")
    if trial.reason and trial.message is not None:
        click.echo(f"\nThis message is recorded and not sent:\n\n{trial.message}\n")
    elif trial.message is not None:
        click.echo(
            f"{', '.join(trial.runs)}: a message of {trial.system} on {trial.project!r}, change {trial.change!r}:"
        )
        click.echo(f"\n{trial.message}\n")


def _stored(data_path: str, run_id: str) -> list[dict[str, Any]]:
    from ciml.data_root import DataRoot
    from ciml.serving.predict.log import predictions_of

    found = predictions_of(DataRoot.open(data_path).predictions, run_id)
    if not found:
        raise CimlError(f"there is no prediction of run {run_id!r:.120} in {data_path}; list runs with ciml runs")
    return found


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    from ciml.errors import RejectedInput
    from ciml.events.fields import parse_json

    with path.open("rb") as lines:
        for number, line in enumerate(_bounded(lines), 1):
            try:
                record = parse_json(line)
            except RejectedInput as rejected:
                raise CimlError(f"{path}, line {number}: {rejected.detail}") from None
            if not isinstance(record, dict):
                raise CimlError(f"{path}, line {number}: expected a JSON object")
            yield record


def _bounded(lines: Any) -> Iterable[bytes]:
    from ciml.limits import MAX_MESSAGE_BYTES

    while line := lines.readline(MAX_MESSAGE_BYTES + 1):
        if line.strip():
            yield line
