"""``ciml dataset build`` (``ciml-build-dataset`` in the talk): build a data set from runs or from a listing."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from ciml.cli.command import command_of, make_command
from ciml.cli.commands.data.dataset.text import contents, warn_of_padding
from ciml.cli.options import S3Environment, TargetData, Windows, assignments, require_data
from ciml.cli.output import print_lines, print_warnings, progress_bar
from ciml.cli.running import BatchRunning, collecting_rarely, processors, require_s3
from ciml.errors import CimlError
from ciml.options import Options, flag, option, repeated

if TYPE_CHECKING:
    from ciml.data_root import DataRoot, StoredDataset
    from ciml.datasets.definition import DatasetDefinition
    from ciml.pipelines.dataflow.settings import DataflowSettings
    from ciml.pipelines.datasets.build import PlannedUpdate
    from ciml.pipelines.datasets.listed_runs import ListedRuns
    from ciml.pipelines.datasets.update import Update

#: The folder of the plots in the folder of the data set; readers of examples skip it.
PLOTS = "_plots"


def _names(ctx: click.Context, param: click.Parameter, value: tuple[str, ...]) -> tuple[str, ...] | None:
    return tuple(name for text in value for name in text.split(",") if name) or None


class DefinitionKeys(Options):
    """The keys of a definition that options override; None or () for the default or the file's.

    Attributes:
      build_name: Job, glob of jobs, or all; may be repeated. [default: all]
      slicer: Slice of the runs by (end time, run id), such as :2000 or -500:, fixed at the first build. [default: all;
        a repeated build adds new runs]
      sample_interval: Window length, such as 1s or 10min. [default: 10s]
      features_regex: Pattern of the columns' short names. [default: all columns]
      class_label: Label: status, provider, provider-region or any run metadata. [default: status]
      class_map: Class of a label value, such as a region's provider; may be repeated.
      tdt_split: Weights of the train, dev and test splits. [default: 7 0 3]
      sample_statistic: Statistic of a window: mean, min, max, std or last. [default: mean]
      aggregation_functions: Functions of a run's windows, such as mean,std, in place of the windows; may be repeated.
      max_windows: Windows of an example; runs are cut or padded. auto: 99 % of the runs fit, at most 5500 s. [default:
        auto]
      min_windows: Minimum windows of a run; shorter runs are excluded. [default: 1]
    """

    build_name: tuple[str, ...] = repeated(metavar="GLOB")
    slicer: str | None = option(metavar="SLICE")
    sample_interval: str | None = option(metavar="INTERVAL")
    features_regex: str | None = option(metavar="REGEX")
    class_label: str | None = option(metavar="NAME")
    class_map: dict[str, str] | None = repeated(assignments, metavar="VALUE=CLASS")
    tdt_split: tuple[int, ...] | None = option(kind=(int, int, int), metavar="TRAIN DEV TEST")
    sample_statistic: str | None = option(metavar="NAME")
    aggregation_functions: tuple[str, ...] | None = repeated(_names, flags="--aggregation-functions", metavar="NAMES")
    max_windows: int | str | None = option(kind=Windows(), metavar="auto|L")
    min_windows: int | None = option(kind=int, metavar="N")

    @property
    def uses_fixed_default_length(self) -> bool:
        """Whether examples have 5500 s of windows, the default of a definition, without a warning of padding."""
        return False


class TalkDefinitionKeys(DefinitionKeys):
    """The keys of a definition in the talk's script, ``ciml-build-dataset``.

    Attributes:
      max_windows: Windows of an example, or auto; runs are cut or padded. [default: 5500 s of windows]
    """

    @property
    def uses_fixed_default_length(self) -> bool:
        return self.max_windows is None


class BuildOptions(TargetData, S3Environment):
    """Options of ``ciml dataset build`` besides the definition's keys.

    Attributes:
      dataset: Name of the data set. [default: the definition's name]
      definition: TOML file or s3:// object of the definition; options override its keys. Keys: docs/datasets.md.
      force: Replace a data set that has another definition.
      listing: Listing of runs, as for ciml backfill, in place of the raw store; requires --logs.
      logs: Folder or s3:// prefix of the listing's log paths.
      visualize: Plot as ciml plot does, into the folder _plots of the data set.
      jobs: Processes that read the listing's logs. [default: one a processor]
    """

    data_path: str = option(kind="new data", required=True)
    dataset: str | None = option(metavar="NAME")
    definition: str | None = option(kind="place", metavar="FILE")
    force: bool = flag("--force/--no-force")
    listing: str | None = option(kind="place", metavar="LISTING")
    logs: str | None = option(kind="place", metavar="ROOT")
    visualize: bool = flag("--visualize/--no-visualize")
    jobs: int | None = option(kind="count", flags="--jobs", metavar="N")


@collecting_rarely()
def run_build(options: BuildOptions, keys: DefinitionKeys, running: BatchRunning) -> None:
    """Build a data set from runs or a listing.

    The definition is stored next to the data set as _definition.toml, for --definition. A repeated build changes
    nothing or adds new runs; a stopped build continues. With --slicer the runs and their outcomes are fixed.

    \b
    Example:
      ciml-build-dataset --dataset cpu-load-1min-dataset --build-name tempest-full --slicer :2000
        --sample-interval 10min --features-regex "(usr|1min)" --class-label status --tdt-split 7 0 3
        --data-path s3://cimlrawdata --target-data-path s3://cimldatasets
      ciml dataset build --definition data/datasets/cpu/_definition.toml --data-path data --target-data-path elsewhere
      ciml dataset build --dataset cpu --listing builds.jsonl --logs . --data-path data
    """
    from ciml.pipelines.datasets.build import build_dataset, has_other_definition, make_room, plan_build

    _check_sources(options, running)
    settings = running.settings() if running.launches else None
    stored = options.root
    target = options.target
    listed_runs = _listed_runs(options)
    definition = _definition(target, options, keys)
    dataset = target.dataset(definition.name)
    if replaces := options.force and has_other_definition(dataset, definition):
        definition = _definition(None, options, keys)
    source = listed_runs or stored
    with listed_runs or nullcontext():
        if replaces:
            make_room(source, target, definition)
        if settings is not None:
            launch_build(plan_build(stored, target, definition), dataset, target.url, running, settings)
            return
        runner, job_endpoint = running.runner
        with progress_bar("making examples") as progress:
            update = build_dataset(
                source, target, definition, runner=runner, job_endpoint=job_endpoint, progress=progress
            )
    print_lines([*_update_lines(update, dataset.store.url()), *_listing_lines(listed_runs, definition)])
    if not keys.uses_fixed_default_length:
        warn_of_padding(update.state)
    if update.sealed:
        from ciml.runs.tables import update_tables

        print_warnings(update_tables(target, (f"datasets/{definition.name}",)))
    if options.visualize:
        _plot(dataset)


build = make_command("build")(run_build)


def make_talk_command() -> click.Command:
    """Return the command of the talk's script, whose examples have another default length."""
    classes = {"options": BuildOptions, "keys": TalkDefinitionKeys, "running": BatchRunning}
    return command_of("build", run_build, classes, help=run_build.__doc__)


def _plot(dataset: StoredDataset) -> None:
    from ciml.reports.dataset.render import plot_dataset

    with progress_bar("reading examples") as progress:
        click.echo(f"  plots     {plot_dataset(dataset, dataset.store.url(PLOTS), progress=progress)}")


def launch_build(
    planned: PlannedUpdate, target: StoredDataset, data_url: str, running: BatchRunning, settings: DataflowSettings
) -> None:
    """Write or submit the job that makes the spans of a data set."""
    name = target.name
    if not planned.steps:
        click.echo(f"{name}: nothing to build; {planned.waiting:,} runs wait for the next span")
        return
    spans = sum(len(step.spans) for step in planned.steps)
    work = f"{name}: {planned.runs:,} runs for {spans:,} {'span' if spans == 1 else 'spans'}"
    show = shlex.join(["ciml", "dataset", "show", name, "--data-path", data_url])
    running.launch(settings, planned.build, f"ciml-dataset-{name}", work=work, then=show)


def _check_sources(options: BuildOptions, running: BatchRunning) -> None:
    """Raise `CimlError` if options exclude each other, or if the raw store does not exist."""
    if (options.listing is None) != (options.logs is None):
        raise CimlError("--listing and --logs: give both or neither")
    if options.listing is not None and running.runner.name is not None:
        raise CimlError("--runner: not supported with --listing; leave it out")
    if running.launches:
        require_s3((options.data_path, "--data-path"), (options.target_data_path, "--target-data-path"))
        if options.visualize:
            raise CimlError(
                "--visualize: plots need the finished data set; use ciml plot when the Dataflow job has ended"
            )
    else:
        running.check_unused(running.beam_options)
    if options.listing is None:
        require_data(options.data_path)


def _listed_runs(options: BuildOptions) -> ListedRuns | None:
    """Return the runs of the listing; None without one."""
    if options.listing is None or options.logs is None:
        return None
    from ciml.events.listing import Reading, logs_root, open_listing
    from ciml.pipelines.datasets.listed_runs import ListedRuns
    from ciml.transforms.fetch.policy import FetchPolicy
    from ciml.trust import TrustPolicy

    root = logs_root(options.logs)
    return ListedRuns(
        open_listing(options.listing),
        Reading(logs=root),
        TrustPolicy.load(None),
        FetchPolicy().allowing(roots=(root,)),
        jobs=options.jobs or processors(),
    )


def _definition(target: DataRoot | None, options: BuildOptions, keys: DefinitionKeys) -> DatasetDefinition:
    """Return the definition: options override the keys of the file, and both override the defaults.

    The default of ``max_windows`` is ``auto``, except for a stored definition, in the talk's script, and where the data
    set exists in ``target`` with another default; ``target`` is None if the data set is to replace another.
    """
    from ciml.datasets.definition import DatasetDefinition
    from ciml.pipelines.datasets.build import DEFINITION, SPAN_RUNS
    from ciml.pipelines.datasets.update import with_default_windows

    file = options.definition
    stored = _file_keys(file) if file is not None else {}
    overrides = {key: value for key, value in asdict(keys).items() if value not in (None, (), {})}
    if options.dataset is not None:
        overrides["name"] = options.dataset
    if "slicer" in overrides and overrides["slicer"] != stored.get("slicer"):
        stored.pop("raw_version", None)  # another slice is pinned to the present version
    values = {"span_runs": SPAN_RUNS, **stored, **overrides}
    if "name" not in values:
        raise CimlError("no name of the data set: give --dataset NAME or a --definition with a name")
    definition = DatasetDefinition.from_json(values, file or "data set")
    if keys.uses_fixed_default_length or (file or "").rpartition("/")[2] == DEFINITION:
        return definition
    existing = None if target is None else target.dataset(definition.name)
    values = with_default_windows(existing, values)
    return DatasetDefinition.from_json(values, file or "data set")


def _file_keys(file: str) -> dict[str, Any]:
    """Return the keys of a TOML file or ``s3://`` object."""
    from ciml.settings import parse_toml, read_toml
    from ciml.storage import open_store

    if not file.startswith("s3://"):
        return read_toml(file)
    folder, _, key = file.rpartition("/")
    try:
        return parse_toml(open_store(folder).read(key).decode(), file)
    except FileNotFoundError:
        raise CimlError(f"{file}: no such file") from None


def _update_lines(update: Update, where: str) -> Iterator[str]:
    state = update.state
    definition = state.definition
    resolved = state.resolved
    if definition is None or resolved is None:
        return
    new_examples = sum(len(span.runs) for span in update.sealed)
    total = sum(state.counts().values())
    new = "all were there" if not update.sealed else f"{new_examples:,} of them new"
    yield f"{definition.name}: {total:,} examples of {resolved.windows} x {len(resolved.features)}, {new}: {where}"
    for name, text in contents(state):
        yield f"  {name:<9} {text}"
    if definition.slicer is not None:
        yield f"  pinned    {definition.slicer} of the runs by version {definition.raw_version} of the raw store"


def _listing_lines(listed_runs: ListedRuns | None, definition: DatasetDefinition) -> Iterator[str]:
    """Yield the number of a listing's lines that are not runs, if any, and a note if their outputs are not read."""
    if listed_runs is not None and "log" in (definition.context or ()):
        yield "  outputs   not read: ciml backfill reads the outputs of a listing's jobs; build from the runs it stores"
    if listed_runs is not None and (left_out := listed_runs.log.left_out):
        reasons = ", ".join(f"{kind} {reason} {count:,}" for (kind, reason), count in sorted(left_out.items()))
        yield f"  no runs   {left_out.total():,} lines of the listing: {reasons}"
