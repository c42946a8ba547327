"""``ciml spans``: the spans of data sets, their versions and files."""

from __future__ import annotations

import json
from collections import Counter
from typing import TYPE_CHECKING, Any

import click

from ciml.errors import CimlError
from cli.options import data_path_option, home_option

if TYPE_CHECKING:
    from ciml.datasets.state import SpanVersion
    from ciml.storage.open import Store

_SPLITS = ("train", "dev", "test")


@click.group("spans", short_help="List and verify the spans of data sets.")
def command() -> None:
    """List and verify the spans of data sets: the examples that were sealed together, and their versions.

    \b
    Example:
      ciml spans list --data-path data
      ciml spans verify cpu-load --data-path data
    """


@command.command("list", short_help="Spans and versions, rows by split and class, files.")
@click.argument("names", metavar="[NAME]...", nargs=-1)
@data_path_option()
@home_option
@click.option("--files", is_flag=True, help="Show the files of each version, too.")
@click.option("--latest", is_flag=True, help="Only the last version of each span.")
@click.option("--json", "as_json", is_flag=True, help="A line of JSON for each version of a span.")
def list_spans(names: tuple[str, ...], data_path: str, files: bool, latest: bool, as_json: bool, **_: Any) -> None:
    """List the spans of the data sets NAME, or of all: rows by split and class, exclusions, files.

    \b
    Example:
      ciml spans list --data-path data
      ciml spans list cpu-load --files --data-path data
      ciml spans list --latest --json --data-path data
    """
    from ciml.datasets.state import dataset_state
    from ciml.storage.open import open_store

    data = open_store(data_path)
    for name in _chosen(data, names):
        state = dataset_state(data, name)
        versions = [
            (span, span.version == max(by_version))
            for _, by_version in sorted(state.spans.items())
            for _, span in sorted(by_version.items())
        ]
        shown = [(span, is_last) for span, is_last in versions if is_last or not latest]
        if as_json:
            for span, is_last in shown:
                click.echo(json.dumps({"data_set": name, "latest": is_last, **describe(span)}))
            continue
        _print(name, shown)
        if files:
            for span, _last in shown:
                for split, held in span.files.items():
                    for file in held:
                        click.echo(f"{data.url(f'datasets/{name}/{file.path}')}  {split}  {file.rows:,} rows")


@command.command("verify", short_help="Check every number and digest of data sets.")
@click.argument("names", metavar="[NAME]...", nargs=-1)
@data_path_option()
@home_option
@click.option("--json", "as_json", is_flag=True, help="Print JSON for programs.")
def verify(names: tuple[str, ...], data_path: str, as_json: bool, **_: Any) -> int:
    """Check every number and digest of the data sets NAME, or of all; exit code 4 with findings.

    Each file that a manifest names is there with its rows and digests, each selected run is in exactly one span, and
    nothing lies around that no manifest names.

    \b
    Example:
      ciml spans verify --data-path data
      ciml spans verify cpu-load --json --data-path data
    """
    from ciml.datasets.state import dataset_state
    from ciml.errors import IntegrityError
    from ciml.storage.open import open_store
    from cli.progress_bar import bars
    from pipelines.datasets.update import verify_dataset

    data = open_store(data_path)
    said: dict[str, dict[str, Any]] = {}
    with bars() as tell:
        for name in _chosen(data, names):
            try:
                # a manifest that contradicts itself is a finding of this data set, and the others are looked at
                state = dataset_state(data, name)
                wrong = verify_dataset(
                    data,
                    name,
                    progress=lambda done, total, name=name: tell(name, done, total),  # type: ignore[misc]
                )
            except IntegrityError as error:
                said[name] = {"examples": None, "spans": None, "findings": [str(error)]}
                continue
            examples = sum(state.counts().values())
            said[name] = {"examples": examples, "spans": len(state.spans), "findings": wrong}
    broken = sum(len(each["findings"]) for each in said.values())
    if as_json:
        click.echo(json.dumps(said, indent=2))
        return 4 if broken else 0
    for name, each in said.items():
        for line in each["findings"]:
            click.echo(f"BROKEN {name}: {line}")
        if not each["findings"]:
            click.echo(f"{name}: {each['examples']:,} examples, spans {each['spans']:,}, all as committed")
    return 4 if broken else 0


def _chosen(data: Store, names: tuple[str, ...]) -> list[str]:
    from ciml.datasets.state import dataset_names

    there = dataset_names(data)
    for name in names:
        if name not in there:
            raise CimlError(f"no data set {name!r} in {data.url('datasets')}; there are: {', '.join(there) or 'none'}")
    if not there:
        click.echo(f"no data sets in {data.url('datasets')}", err=True)
    return list(dict.fromkeys(names)) or there


def describe(span: SpanVersion) -> dict[str, Any]:
    """A version of a span as JSON: examples by split and class, exclusions by reason, files."""
    by_split: dict[str, Counter[str]] = {}
    for run in span.runs:
        by_split.setdefault(run.split, Counter())[run.label_name] += 1
    return {
        "span": span.span,
        "version": span.version,
        "examples": len(span.runs),
        "splits": {split: dict(sorted(by_split[split].items())) for split in _SPLITS if split in by_split},
        "excluded": dict(sorted(Counter(each["reason"] for each in span.excluded).items())),
        "files": {split: [file.to_json() for file in files] for split, files in span.files.items()},
    }


def _print(name: str, spans: list[tuple[SpanVersion, bool]]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    classes = list(
        dict.fromkeys(run.label_name for span, _ in spans for run in sorted(span.runs, key=lambda r: r.label))
    )
    table = Table(title=name, title_justify="left")
    for heading in ("span", "version", "examples", *classes, *_SPLITS, "excluded", "files"):
        table.add_column(Text(heading), justify="right", no_wrap=True)
    for span, is_last in spans:
        by_class = Counter(run.label_name for run in span.runs)
        by_split = Counter(run.split for run in span.runs)
        numbers: list[int] = [
            len(span.runs),
            *(by_class[each] for each in classes),
            *(by_split[each] for each in _SPLITS),
        ]
        numbers += [len(span.excluded), sum(map(len, span.files.values()))]
        version = f"{span.version}" if is_last else f"{span.version} old"
        table.add_row(str(span.span), version, *(f"{number:,}" for number in numbers))
    Console(highlight=False).print(table)
