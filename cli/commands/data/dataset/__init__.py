"""``ciml dataset``: create, update, show and verify data sets, their spans and files; `build` has ``dataset build``."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ciml.cli.command import make_command
from ciml.cli.commands.data.dataset.build import build, launch_build
from ciml.cli.commands.data.dataset.text import (
    padding_text,
    print_spans,
    span_json,
    state_json,
    state_lines,
    warn_of_padding,
)
from ciml.cli.options import Data, Json, NewData
from ciml.cli.output import print_lines, print_warnings, progress_bar
from ciml.cli.running import BatchRunning, collecting_rarely, require_s3
from ciml.errors import CimlError
from ciml.options import TrustOptions, argument, flag, option

if TYPE_CHECKING:
    from ciml.data_root import StoredDataset
    from ciml.datasets.state import DatasetState, SpanVersion


class NamesOptions(Data):
    """The data sets of a command; () for all."""

    names: tuple[str, ...] = argument("[NAME]...", many=True, required=False)

    def datasets(self) -> list[StoredDataset]:
        """Return the data sets. Raises `CimlError` for an unknown name."""
        data = self.root
        existing = data.dataset_names()
        for name in self.names:
            if name not in existing:
                raise CimlError(
                    f"no data set {name!r} in {data.datasets.url()}; choose from {', '.join(existing) or 'none'}"
                )
        if not existing:
            click.echo(f"no data sets in {data.datasets.url()}", err=True)
        return [data.dataset(name) for name in dict.fromkeys(self.names or existing)]


class SpansOptions(NamesOptions, Json):
    """Options of ``ciml dataset spans``.

    Attributes:
      files: List the files of each version.
      latest: List only the latest version of each span.
      json: JSON output, one object per version of a span.
    """

    files: bool = flag()
    latest: bool = flag()


@make_command("spans")
def spans(options: SpansOptions) -> None:
    """List spans and versions of data sets.

    Without NAME it lists all data sets. It shows rows by split and class, exclusions and, with --files, files.

    \b
    Example:
      ciml dataset spans --data-path data
      ciml dataset spans cpu-load --files --data-path data
      ciml dataset spans --latest --json --data-path data
    """
    for dataset in options.datasets():
        versions = _versions(dataset.state(), latest=options.latest)
        if options.json:
            for span, is_last in versions:
                click.echo(json.dumps({"data_set": dataset.name, "latest": is_last, **span_json(span)}))
            continue
        print_spans(dataset.name, versions)
        if options.files:
            print_lines(_file_lines(dataset, versions))


def _versions(state: DatasetState, *, latest: bool) -> list[tuple[SpanVersion, bool]]:
    """Return all versions of the spans or only the latest ones, each with whether it is the latest of its span."""
    versions = []
    for _, by_version in sorted(state.spans.items()):
        for number, span in sorted(by_version.items()):
            is_last = number == max(by_version)
            if is_last or not latest:
                versions.append((span, is_last))
    return versions


def _file_lines(dataset: StoredDataset, versions: Sequence[tuple[SpanVersion, bool]]) -> Iterator[str]:
    for span, _ in versions:
        for split, files in span.files.items():
            for file in files:
                yield f"{dataset.store.url(file.path)}  {split}  {file.rows:,} rows"


class VerifyOptions(NamesOptions, Json):
    """Options of ``ciml dataset verify``."""


@make_command("verify")
def verify(options: VerifyOptions) -> int:
    """Verify all counts and digests of data sets.

    Without NAME it verifies all data sets: each file in a manifest exists with its rows and digests, each selected run
    is in exactly one span, and no file is unreferenced. The exit code is 4 with findings.

    \b
    Example:
      ciml dataset verify --data-path data
      ciml dataset verify cpu-load --json --data-path data
    """
    from ciml.cli.output import bars
    from ciml.errors import IntegrityError
    from ciml.pipelines.datasets.update import verify_dataset
    from ciml.progress import renamed

    results: dict[str, dict[str, Any]] = {}
    with bars() as progress:
        for dataset in options.datasets():
            name = dataset.name
            try:
                state = dataset.state()
                findings = verify_dataset(dataset, progress=renamed(progress, name))
            except IntegrityError as error:
                # A manifest that contradicts itself is a finding of this data set; the others are verified too.
                results[name] = {"examples": None, "spans": None, "findings": [str(error)]}
                continue
            examples = sum(state.counts().values())
            results[name] = {"examples": examples, "spans": len(state.spans), "findings": findings}
    options.show(results, _print_verified)
    return 4 if any(result["findings"] for result in results.values()) else 0


def _print_verified(results: dict[str, dict[str, Any]]) -> None:
    for name, result in results.items():
        for line in result["findings"]:
            click.echo(f"BROKEN {name}: {line}")
        if not result["findings"]:
            click.echo(f"{name}: {result['examples']:,} examples, spans {result['spans']:,}, all as committed")


class CreateOptions(NewData):
    """Options of ``ciml dataset create``.

    Attributes:
      definition: TOML file of the definition; docs/datasets.md lists the keys.
    """

    name: str = argument()
    definition: str = option(kind="file", required=True)


@make_command("create")
def create(options: CreateOptions) -> None:
    """Create a data set from a definition.

    NAME is the new data set. The same definition again changes nothing; a different one under NAME is an error. Without
    max_windows, the length of examples is auto: the first span's runs decide.

    \b
    Example:
      ciml dataset create cpu-load --definition cpu-load.toml --data-path DATA
    """
    from ciml.datasets.definition import AUTO, DatasetDefinition
    from ciml.pipelines.datasets.update import create_dataset, with_default_windows
    from ciml.settings import read_toml

    name = options.name
    data = options.root
    keys = {**read_toml(options.definition), "name": name}
    DatasetDefinition.from_json(keys, options.definition)  # fails for an invalid one, before windows are added
    definition = DatasetDefinition.from_json(with_default_windows(data.dataset(name), keys), options.definition)
    state = create_dataset(data, definition)
    length = f"{definition.most_windows}"
    if definition.max_windows == AUTO:
        length = f"auto, at most {length}," if state.resolved is None else f"{state.resolved.windows}, auto,"
    click.echo(
        f"{name}: {definition.class_label} of {', '.join(definition.build_name)}, L = {length} at "
        f"{definition.sample_interval}; next: ciml dataset update {name} --data-path {options.data_path}"
    )
    if padding := padding_text(state):
        click.echo(f"  padding   {padding}")
    warn_of_padding(state)


class UpdateOptions(Data):
    """Options of ``ciml dataset update``.

    Attributes:
      seal: Seal the last span even if it has too few runs.
    """

    name: str = argument()
    seal: bool = flag()


@make_command("update")
@collecting_rarely()
def update(options: UpdateOptions, running: BatchRunning) -> None:
    """Seal the spans that have enough runs.

    Concurrent updates of a data set are safe.

    \b
    Example:
      ciml dataset update cpu-load --data-path DATA
      ciml dataset update cpu-load --seal --runner fnapi --data-path DATA
    """
    name = options.name
    data = options.root
    dataset = data.dataset(name)
    if running.launches:
        from ciml.pipelines.datasets.build import plan_update

        require_s3((options.data_path, "--data-path"))
        settings = running.settings()
        launch_build(plan_update(dataset, seal=options.seal), dataset, data.url, running, settings)
        return
    running.check_unused(running.beam_options)
    from ciml.pipelines.datasets.update import update_dataset

    runner, job_endpoint = running.runner
    with progress_bar("making examples") as progress:
        result = update_dataset(dataset, runner=runner, job_endpoint=job_endpoint, seal=options.seal, progress=progress)
    if result.sealed:
        print_spans(f"sealed in {name}", ((span, True) for span in result.sealed))
    examples = sum(len(span.runs) for span in result.sealed)
    span_count = f"{len(result.sealed)} {'span' if len(result.sealed) == 1 else 'spans'}"
    span_runs = result.state.definition.span_runs if result.state.definition else 0
    click.echo(
        f"{name}: {examples} examples in {span_count} sealed; "
        f"{result.waiting} of {span_runs} runs wait for the next span"
    )
    if result.sealed:
        if padding := padding_text(result.state):
            click.echo(f"  padding   {padding}")
            warn_of_padding(result.state)
        from ciml.runs.tables import update_tables

        print_warnings(update_tables(data, (f"datasets/{name}",)))


class ShowOptions(Data, Json):
    """Options of ``ciml dataset show``.

    Attributes:
      json: JSON output: definition, columns, classes, spans and counts.
    """

    name: str | None = argument(required=False)


@make_command("show")
def show(options: ShowOptions) -> None:
    """Show a data set, or the names of all.

    \b
    Example:
      ciml dataset show cpu-load --data-path DATA
      ciml dataset show --data-path DATA
    """
    data = options.root
    if options.name is None:
        none = f"no data sets in {data.datasets.url()}"
        options.show(data.dataset_names(), lambda names: click.echo("\n".join(names) or none))
    else:
        options.show(data.dataset(options.name).state(), partial(_print_state, options.name), state_json)


def _print_state(name: str, state: DatasetState) -> None:
    for key, value in state_lines(state):
        click.echo(f"{key:<10} {value}")
    if state.spans:
        print_spans(name, ((span, True) for span in state.latest()))
    warn_of_padding(state)


class RecordsOptions(TrustOptions, Data):
    """Options of ``ciml dataset records``.

    Attributes:
      to: Local output folder; an existing folder of records is replaced.
    """

    name: str = argument()
    to: Path = option(kind=click.Path(path_type=Path), metavar="FOLDER", required=True)


@make_command("records")
def records(options: RecordsOptions) -> None:
    """Write normalised examples as TFRecord files.

    They are the trusted examples of the data set NAME, normalised by its training runs. FOLDER/records/train, dev and
    test hold tf.Example; tf.Transform's TFTransformOutput reads FOLDER/transform. Analyses of spans are cached.

    \b
    Example:
      ciml dataset records cpu-load --to cpu-load-records --data-path DATA
    """
    from ciml.training.data.analysis import AnalysisCache
    from ciml.training.data.materialise import is_materialised, materialise
    from ciml.training.data.snapshot import make_snapshot

    to = options.to
    dataset = options.root.dataset(options.name)
    if to.exists() and not is_materialised(to) and (not to.is_dir() or any(to.iterdir())):
        raise CimlError(f"--to {to}: is not a folder of records; name a new or empty folder")
    with collecting_rarely():
        snapshot = make_snapshot(dataset, options.trust_of(options.root).current())
        records = materialise(dataset.store, snapshot, to, cache=AnalysisCache(dataset.store.child("_analyses")))
    counts = ", ".join(f"{role} {count:,}" for role, count in records.counts.items())
    spans = f"{records.analysed} of {records.analysed + records.cached} spans analysed"
    click.echo(f"{options.name}: {counts}; {spans}: {to}")


@click.group("dataset", commands=[build, create, update, show, spans, verify, records])
def command() -> None:
    """Build, update, show and verify data sets.

    A data set is a definition and its examples, one a run, sealed in spans. It covers all runs of the raw store, also
    those older than the definition. `build` makes one from options; `create` and `update` follow a stream of runs.

    \b
    Example:
      ciml dataset create cpu-load --definition cpu-load.toml --data-path DATA
      ciml dataset update cpu-load --data-path DATA
      ciml dataset build --dataset cpu --features-regex "(usr|1min)" --data-path DATA
    """
