"""``ciml experiment compare``: results beside each other, in the terminal, as CSV or as JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import click

from ciml.cli.options import data_path_option, s3_options
from ciml.cli.tables import print_table

Record = Mapping[str, Any]


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
        _print(records)
        if comparison.beaten:
            click.echo(comparison.beaten)


def _write_csv(records: Sequence[Record], file: str) -> None:
    import csv

    with click.open_file(file, "w", encoding="utf-8", atomic=file != "-") as out:
        writer = csv.DictWriter(out, list(records[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(records)


def _print(records: Sequence[Record]) -> None:
    datasets = {record["dataset"] for record in records}
    wide = len(datasets) > 1
    f1_of = {record["f1_of"] for record in records}
    f1 = {("macro",): "macro F1", ("failed",): "F1 of failed"}.get(tuple(sorted(f1_of)), "F1 of failed, or macro F1")
    first, *others = records
    title = f"{first['runs']:,} test runs of {', '.join(sorted(datasets))}"
    numbers = ["accuracy", f1, "ROC-AUC", "base rate", "one number", "to the first", "by chance"]
    rows = [_row(record, wide=wide, first=record is first) for record in records]
    print_table(["experiment", *numbers], rows, title=title, right=numbers)
    lines = ["intervals of 95 %; to the first: difference of the accuracies, run by run"]
    lines += [f"{record['experiment']}: not compared, {record['note']}" for record in others if record["note"]]
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
