"""``ciml dataset spans`` and ``ciml dataset verify``."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from functools import partial
from typing import TYPE_CHECKING, Any

import click

from ciml.cli.options import data_path_option
from ciml.cli.tables import print_table
from ciml.errors import CimlError

if TYPE_CHECKING:
    from ciml.data_root import StoredDataset
    from ciml.datasets.state import SpanVersion

_SPLITS = ("train", "dev", "test")


@click.command("spans")
@click.argument("names", metavar="[NAME]...", nargs=-1)
@data_path_option()
@click.option("--files", is_flag=True, help="List the files of each version.")
@click.option("--latest", is_flag=True, help="List only the latest version of each span.")
@click.option("--json", "as_json", is_flag=True, help="JSON output, one object a line for each version of a span.")
def spans(names: tuple[str, ...], data_path: str, files: bool, latest: bool, as_json: bool) -> None:
    """List spans and versions of data sets.

    Without NAME it lists all data sets. It shows rows by split and class, exclusions and, with --files, files.

    \b
    Example:
      ciml dataset spans --data-path data
      ciml dataset spans cpu-load --files --data-path data
      ciml dataset spans --latest --json --data-path data
    """
    for dataset in _chosen(data_path, names):
        name, state = dataset.name, dataset.state()
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
        print_spans(name, shown)
        if files:
            for span, _last in shown:
                for split, held in span.files.items():
                    for file in held:
                        click.echo(f"{dataset.store.url(file.path)}  {split}  {file.rows:,} rows")


@click.command("verify")
@click.argument("names", metavar="[NAME]...", nargs=-1)
@data_path_option()
@click.option("--json", "as_json", is_flag=True, help="JSON output.")
def verify(names: tuple[str, ...], data_path: str, as_json: bool) -> int:
    """Verify all counts and digests of data sets.

    Without NAME it verifies all data sets: each file in a manifest exists with its rows and digests, each selected run
    is in exactly one span, and no file is unreferenced. The exit code is 4 with findings.

    \b
    Example:
      ciml dataset verify --data-path data
      ciml dataset verify cpu-load --json --data-path data
    """
    from ciml.cli.progress import bars
    from ciml.errors import IntegrityError
    from ciml.pipelines.datasets.update import verify_dataset

    found: dict[str, dict[str, Any]] = {}
    with bars() as progress:
        for dataset in _chosen(data_path, names):
            name = dataset.name
            try:
                # a manifest that contradicts itself is a finding of this data set; the others are verified too
                state = dataset.state()
                wrong = verify_dataset(dataset, progress=partial(progress, name))
            except IntegrityError as error:
                found[name] = {"examples": None, "spans": None, "findings": [str(error)]}
                continue
            examples = sum(state.counts().values())
            found[name] = {"examples": examples, "spans": len(state.spans), "findings": wrong}
    broken = sum(len(each["findings"]) for each in found.values())
    if as_json:
        click.echo(json.dumps(found, indent=2))
        return 4 if broken else 0
    for name, each in found.items():
        for line in each["findings"]:
            click.echo(f"BROKEN {name}: {line}")
        if not each["findings"]:
            click.echo(f"{name}: {each['examples']:,} examples, spans {each['spans']:,}, all as committed")
    return 4 if broken else 0


def _chosen(data_path: str, names: tuple[str, ...]) -> list[StoredDataset]:
    from ciml.data_root import DataRoot

    data = DataRoot.open(data_path)
    known = data.dataset_names()
    for name in names:
        if name not in known:
            raise CimlError(f"no data set {name!r} in {data.datasets.url()}; choose from {', '.join(known) or 'none'}")
    if not known:
        click.echo(f"no data sets in {data.datasets.url()}", err=True)
    return [data.dataset(name) for name in dict.fromkeys(names or known)]


def describe(span: SpanVersion) -> dict[str, Any]:
    """Return a version of a span as JSON: examples by split and class, exclusions by reason, files."""
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


def print_spans(title: str, spans: Iterable[tuple[SpanVersion, bool]]) -> None:
    """Print a table of span versions, each with whether it is the latest of its span."""
    spans = list(spans)
    classes = list(
        dict.fromkeys(run.label_name for span, _ in spans for run in sorted(span.runs, key=lambda r: r.label))
    )
    rows = []
    for span, is_last in spans:
        by_class = Counter(run.label_name for run in span.runs)
        by_split = Counter(run.split for run in span.runs)
        numbers: list[int] = [
            len(span.runs),
            *(by_class[each] for each in classes),
            *(by_split[each] for each in _SPLITS),
        ]
        numbers.append(len(span.excluded))
        version = f"{span.version}" if is_last else f"{span.version} old"
        rows.append([str(span.span), version, *(f"{number:,}" for number in numbers)])
    headings = ["span", "version", "examples", *classes, *_SPLITS, "excluded"]
    print_table(headings, rows, title=title, right=headings)
