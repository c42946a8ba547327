"""The definition of a data set, its resolved form, and the classes and features that follow from them.

A definition is a short TOML file. It resolves once, when the first span of the data set is sealed, to an ordered list
of columns and of classes. From then on a run with a missing column or an unknown class is excluded with its reason.
Later runs never change the shape of an example. A model contains the resolved definition in its assets.

A definition can ask for kinds of context (`Context`): facts of a run next to its telemetry, which are equal in all
windows of the run. `ciml.transforms.examples.context` computes their values.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cached_property, lru_cache
from typing import Annotated, Any, ClassVar, Literal, TypeAlias, get_args

from msgspec import Meta, field

from ciml.errors import CimlError
from ciml.events.outcomes import CAUSE, CAUSES, FAILED
from ciml.events.records import RunFacts
from ciml.globs import glob_pattern
from ciml.settings import Settings, as_value_error, check_name
from ciml.telemetry import select_columns, short_names

#: Seconds of a run that an example holds by default, as in the original.
NORMAL_LENGTH_S = 5500
#: The value of ``max_windows`` for a length that at least this percentage of the runs does not exceed.
AUTO = "auto"
UNCUT_PERCENT = 99
#: Upper limit of windows: an example of 14 columns would take 5.6 MB.
MAX_WINDOWS = 100_000
#: The splits of a data set.
Split = Literal["train", "dev", "test"]
SPLITS: tuple[Split, ...] = get_args(Split)
#: One salt for all data sets, so that a run is in the same split everywhere.
DEFAULT_SALT = "ciml"
#: Optional keys. They are omitted where unset, as in versions before these keys existed.
_OPTIONAL_KEYS = ("slicer", "raw_version", "min_windows", "baseline", "context")

Statistic = Literal["mean", "min", "max", "std", "last"]
Aggregation = Literal["mean", "std", "var", "min", "max", "median", "sum", "first", "last", "count"]
#: ``outcome``: how the run ended. ``profile``: the run against the passing runs of its job. ``neighbours``: runs that
#: failed on the same provider shortly before. ``log``: the reason that the run's output names.
Context: TypeAlias = Literal["outcome", "profile", "neighbours", "log"]
OUTCOME_FEATURES = ("outcome:timeout", "outcome:exit", "outcome:signal")
NEIGHBOUR_FEATURES = ("neighbours:failed", "neighbours:share")
LENGTH_FEATURE = "profile:length"
#: One of them is not 0 (`ciml.transforms.logs.features`): a reason, another sign of a failure, neither, or no output.
LOG_PREFIX = "log:"
LOG_FEATURES = tuple(
    f"{LOG_PREFIX}{name}" for name in "resource dependency crash program other silent unavailable".split()
)
#: Above 0 in a run without an output.
NO_OUTPUT_FEATURE = LOG_FEATURES[-1]
#: Prefixes of the features that a run without telemetry has.
_BESIDE_TELEMETRY = ("outcome:", "neighbours:", LOG_PREFIX)
#: Of each telemetry feature: its mean, its largest window and its last window.
PROFILE_PARTS = ("mean", "max", "last")

#: Facts of a run in the metadata columns of an example.
FACT_COLUMNS = (
    "source event pipeline project branch change patchset review provider region flavour outcome result".split()
)
#: Columns of an example that are not features. A feature with such a name uses its full name.
METADATA_COLUMNS = (
    *("run_id", "build_uuid", "build_name", "label", "label_name", "split", "n_windows", "digest"),
    *FACT_COLUMNS,
    *("start_time", "end_time", "labels"),
)

#: The classes of ``status``, in order.
STATUS_CLASSES = ("passed", "failed")
#: A timeout is a failure. All other outcomes reveal nothing about code or machine, so they are not labels.
_STATUS = {"success": "passed", "failure": "failed", "timeout": "failed"}
#: Names of labels in the original that differ here.
_ALIASES = {"node_provider": "provider", "node_provider_all": "provider-region", "node_flavor": "flavour"}
#: Facts that may be labels by their own name; any other name is looked up in the run's labels.
_FACTS = frozenset(
    "build_name outcome result source event pipeline project branch change review provider region flavour".split()
)

_UNITS_US = {"ms": 1_000, "s": 1_000_000, "min": 60_000_000, "h": 3_600_000_000}
_INTERVAL = re.compile(r"([0-9]{0,9})(ms|s|min|h)")
_SLICER = re.compile(r"(-?[0-9]{1,9})?(:(-?[0-9]{1,9})?){0,2}")


class DatasetDefinition(Settings, frozen=True, kw_only=True):
    """The definition of a data set.

    Attributes:
      name: the data set's name, and of its folder.
      version: version number of the definition, set by its author.
      build_name: jobs, or globs of jobs; ``all`` means every job.
      sample_interval: length r of a window, as pandas writes it; windows start at UTC midnight.
      features_regex: searched in the short names of columns, or in full names where it contains a colon.
      class_label: ``status``, ``cause`` (``code`` or ``machine``, of failed runs: `ciml.runs.causes`), ``provider``
        (regions merged), ``provider-region``, or any metadata of a run.
      classes: the classes in order; by default the sorted classes of the first span.
      class_map: from a value of the label to a class; without ``classes``, its values are all classes. A value that
        maps to ``""`` is not a label.
      tdt_split: weights of train, dev and test.
      salt: key of the split. Data sets that share it share the split.
      sample_statistic: the statistic of a window's samples.
      aggregation_functions: if set, an example holds these functions of a run's windows instead of the windows.
      max_windows: L, the length that runs are cut or padded to; by default ceil(5500 s / r). ``auto`` resolves once
        to the length that 99 % of the runs do not exceed, at most ceil(5500 s / r).
      min_windows: runs with fewer windows are excluded. With an equal ``max_windows``, each example is the beginning of
        a run, and all have the same length.
      count_first_sample: whether a recorder's first samples (averages since boot) are used.
      baseline: the number of a run that experiments are compared with: ``duration``, ``memory`` or ``none``. The
        default is the number that is known to reveal the label.
      span_runs: number of selected runs that are sealed together.
      slicer: takes a slice of the selected runs, ordered by (end time, run id), once. Without it the data set takes all
        present and future runs.
      raw_version: version of the raw manifest for ``slicer``; later runs are ignored.
      context: further features, the same in all windows of a run (`Context`): ``outcome``, ``profile``,
        ``neighbours``, ``log``. They are known when a run has ended, so such a data set has no live windows.
    """

    title: ClassVar[str] = "definition"
    lists: ClassVar[tuple[str, ...]] = ("build_name", "classes", "aggregation_functions", "context")

    name: str
    version: Annotated[int, Meta(ge=1)] = 1
    build_name: tuple[str, ...] = ("all",)
    sample_interval: str = "10s"
    features_regex: str = "."
    class_label: str = "status"
    classes: tuple[str, ...] | None = None
    class_map: dict[str, str] = field(default_factory=dict)
    tdt_split: tuple[int, int, int] = (7, 0, 3)
    salt: Annotated[str, Meta(min_length=1)] = DEFAULT_SALT
    sample_statistic: Statistic = "mean"
    aggregation_functions: tuple[Aggregation, ...] = ()
    max_windows: Annotated[int, Meta(ge=1, le=MAX_WINDOWS)] | Literal["auto"] | None = None
    min_windows: Annotated[int, Meta(ge=1, le=MAX_WINDOWS)] | None = None
    count_first_sample: bool = True
    span_runs: Annotated[int, Meta(ge=1, le=100_000)] = 200
    baseline: Literal["duration", "memory", "none"] | None = None
    slicer: str | None = None
    raw_version: Annotated[int, Meta(ge=1)] | None = None
    context: Annotated[tuple[Context, ...], Meta(min_length=1)] | None = None

    def to_json(self) -> dict[str, Any]:
        """Return all keys as JSON values; optional keys only where they are set."""
        keys = super().to_json()
        return {key: value for key, value in keys.items() if value is not None or key not in _OPTIONAL_KEYS}

    def __post_init__(self) -> None:
        check_name(self.name)
        if not self.build_name or not all(self.build_name):
            raise ValueError("build_name: is empty; give jobs, globs or all")
        with as_value_error("sample_interval: "):
            interval_us(self.sample_interval)
        with as_value_error("features_regex: "):
            select_columns((), self.features_regex)
        if self.slicer is not None:
            with as_value_error("slicer: "):
                slice_of(self.slicer)
        self._check_classes()
        if min(self.tdt_split) < 0 or self.tdt_split[0] == 0:
            raise ValueError("tdt_split: want three weights of 0 or more for train, dev and test, with train above 0")
        self._check_windows()
        if self.context is not None and len(set(self.context)) != len(self.context):
            raise ValueError("context: a kind appears twice")
        if self.raw_version is not None and self.slicer is None:
            raise ValueError("raw_version: requires slicer")

    def _check_classes(self) -> None:
        if self.classes is not None:
            if len(set(self.classes)) != len(self.classes) or not all(self.classes):
                raise ValueError("classes: class names must be different")
            if len(self.classes) < 2:
                raise ValueError("classes: want at least two classes")
        mapped = set(self.class_map.values()) - {""}
        if self.classes is None and self.class_map and len(mapped) < 2:
            raise ValueError("class_map: want at least two classes")
        if self.classes is not None and (unknown := sorted(mapped - set(self.classes))):
            raise ValueError(f"class_map: {unknown[0]!r} is not in classes")

    def _check_windows(self) -> None:
        if len(set(self.aggregation_functions)) != len(self.aggregation_functions):
            raise ValueError("aggregation_functions: a function appears twice")
        for key in ("max_windows", "min_windows"):
            if self.aggregation_functions and getattr(self, key) is not None:
                raise ValueError(f"{key}: cannot be combined with aggregation_functions")
        if self.min_windows is not None and self.min_windows > self.most_windows:
            raise ValueError(
                f"min_windows: is above the {self.most_windows} windows of an example; set max_windows too"
            )
        if self.most_windows > MAX_WINDOWS:
            raise ValueError(
                f"sample_interval: {self.sample_interval} gives {self.most_windows} windows; set max_windows"
            )

    @cached_property
    def interval_us(self) -> int:
        """Length of a window in microseconds."""
        return interval_us(self.sample_interval)

    @property
    def most_windows(self) -> int:
        """L, or its upper limit where ``max_windows`` is ``auto``; `ResolvedDefinition.windows` is the length."""
        if self.aggregation_functions:
            return len(self.aggregation_functions)
        if isinstance(self.max_windows, int):
            return self.max_windows
        normal_windows = -(-NORMAL_LENGTH_S * 1_000_000 // self.interval_us)  # rounded up
        return min(normal_windows, MAX_WINDOWS) if self.max_windows == AUTO else normal_windows

    def selects(self, build_name: str) -> bool:
        """Return whether the data set selects this job."""
        return self._match_job(build_name) is not None

    @cached_property
    def _match_job(self) -> Callable[[str], Any]:
        return lru_cache(maxsize=1024)(glob_pattern(self.build_name).fullmatch)  # few jobs with many runs each


class ResolvedDefinition(Settings, frozen=True, kw_only=True):
    """A definition with its resolved columns and classes, sufficient to prepare a run.

    Attributes:
      definition: the definition as written.
      columns: full names of the telemetry columns, in order (``load avg:1m``).
      features: names of the features of examples: of the columns in the same order (``1m``), then of the context.
      classes: names of the classes; a label is an index into it.
      windows: L: the number of windows, or functions, of each feature of an example.
      profiles: the passing profiles of the first span's jobs (`ciml.transforms.profiles`) as JSON, for the
        context ``profile``; None without it.
      outputs: what passing runs of these jobs print (`ciml.transforms.logs.known`) as JSON, for the context ``log``;
        None without it.
    """

    title: ClassVar[str] = "resolved definition"

    definition: DatasetDefinition
    columns: Annotated[tuple[str, ...], Meta(min_length=1)]
    features: Annotated[tuple[str, ...], Meta(min_length=1)]
    classes: Annotated[tuple[str, ...], Meta(min_length=2)]
    windows: Annotated[int, Meta(ge=1, le=MAX_WINDOWS)]
    profiles: dict[str, Any] | None = None
    outputs: dict[str, Any] | None = None

    def __post_init__(self) -> None:
        if len(self.features) != len(self.columns) + len(self.context_features):
            raise ValueError("features: want one for each column and each context feature")

    def to_json(self) -> dict[str, Any]:
        value = {**super().to_json(), "definition": self.definition.to_json()}
        return {name: part for name, part in value.items() if part is not None or name not in ("profiles", "outputs")}

    def to_asset(self) -> bytes:
        """Return the content of ``definition.json`` in the assets of a model."""
        return json.dumps(self.to_json(), indent=2, sort_keys=True).encode() + b"\n"

    @property
    def telemetry_features(self) -> tuple[str, ...]:
        """The names of the features of `columns`, in the same order."""
        return self.features[: len(self.columns)]

    @property
    def context_features(self) -> tuple[str, ...]:
        """The names of the context features, the last ones of `features`."""
        return context_features(self.definition.context or (), self.telemetry_features)

    def label_of(self, facts: RunFacts) -> tuple[int, str] | str:
        """Return (label, class) of a run, or the reason why it has no example.

        The reason is ``no_label``, ``unknown_class``, or ``other_job`` where a reclaim changed the job of the run.
        """
        if not self.definition.selects(facts.build_name):
            return "other_job"
        name = label_of(facts, self.definition.class_label, self.definition.class_map)
        if name is None:
            return "no_label"
        try:
            return self.classes.index(name), name
        except ValueError:
            return "unknown_class"


def resolve(
    definition: DatasetDefinition,
    columns: Iterable[Sequence[str]],
    run_facts: Iterable[RunFacts],
    lengths: Callable[[ResolvedDefinition], Iterable[int]] = lambda draft: (),
    profiles: Callable[[Sequence[str]], dict[str, Any]] | None = None,
    outputs: Callable[[], dict[str, Any]] | None = None,
) -> ResolvedDefinition:
    """Resolve a definition against the runs of its first span.

    The columns are those that the pattern selects in most runs (the earliest of equals), so that one unusual recorder
    does not decide. The classes are the definition's own, or the sorted ones of these runs.

    Args:
      definition: the definition to resolve.
      columns: per run the full names of its telemetry columns, in log order.
      run_facts: the facts of each run.
      lengths: returns the number of windows of each run, for ``max_windows = "auto"``; called with a draft that has the
        longest length.
      profiles: returns the passing profiles, for the context ``profile``; called with the full names of the columns.
      outputs: returns what passing runs print, for the context ``log``.

    Raises:
      CimlError: the definition selects no column, or fewer than two classes are found.
    """
    short_of_column = _select_most_frequent(definition.features_regex, columns)
    selected_columns = tuple(short_of_column)
    features = tuple(full if short in METADATA_COLUMNS else short for full, short in short_of_column.items())
    context = definition.context or ()
    draft = ResolvedDefinition(
        definition=definition,
        columns=selected_columns,
        features=features + context_features(context, features),
        classes=definition.classes or _classes(definition, run_facts),
        windows=definition.most_windows,
        profiles=profiles(selected_columns) if profiles is not None and "profile" in context else None,
        outputs=outputs() if outputs is not None and "log" in context else None,
    )
    return draft.replace(windows=auto_windows(definition, lengths(draft))) if definition.max_windows == AUTO else draft


def _select_most_frequent(features_regex: str, columns: Iterable[Sequence[str]]) -> dict[str, str]:
    """Return the selection of columns that most runs have, as short names by full name, in log order."""
    layouts = Counter(tuple(names) for names in columns)
    selection_runs: Counter[tuple[str, ...]] = Counter()
    layout_of_selection: dict[tuple[str, ...], tuple[str, ...]] = {}
    for layout, runs in layouts.items():
        selection = select_columns(layout, features_regex)
        selection_runs[selection] += runs
        layout_of_selection.setdefault(selection, layout)
    del selection_runs[()]
    if not selection_runs:
        names_text = ", ".join(list(short_names(next(iter(layouts), ())).values())[:40]) or "(none)"
        raise CimlError(f"features_regex {features_regex!r} matches none of the columns {names_text}")
    selection = max(selection_runs, key=selection_runs.__getitem__)  # the first of equals
    short_of_column = short_names(layout_of_selection[selection])
    return {name: short_of_column[name] for name in selection}


def auto_windows(definition: DatasetDefinition, lengths: Iterable[int]) -> int:
    """Return the smallest number of windows that cuts at most 1 % of the runs, within the definition's limits.

    Args:
      definition: gives the longest length and ``min_windows``; runs with fewer windows do not count.
      lengths: number of windows of each run. Without any, the longest length results.
    """
    min_windows = definition.min_windows or 1
    counted = sorted(length for length in lengths if length >= min_windows)
    if not counted:
        return definition.most_windows
    runs_not_cut = -(-UNCUT_PERCENT * len(counted) // 100)  # rounded up
    return min(counted[runs_not_cut - 1], definition.most_windows)


def _classes(definition: DatasetDefinition, run_facts: Iterable[RunFacts]) -> tuple[str, ...]:
    """Return the classes of a definition that does not list them. Raises `CimlError` for fewer than two."""
    if definition.class_map:
        return tuple(dict.fromkeys(name for name in definition.class_map.values() if name))
    if definition.class_label == "status":
        return STATUS_CLASSES
    if definition.class_label == CAUSE:
        return CAUSES
    voters = list(run_facts)
    names_or_none = {label_of(facts, definition.class_label, {}) for facts in voters}
    names = sorted(name for name in names_or_none if name is not None)
    if not names:
        labels = {name for facts in voters for name in (*_FACTS, *facts.labels) if _metadata_value(facts, name)}
        choices = ", ".join(["status", *sorted(labels)[:40]])
        raise CimlError(f"class_label {definition.class_label!r}: no run has a value of it; choose from {choices}")
    if len(names) == 1:
        raise CimlError(
            f"class_label {definition.class_label!r}: all runs have the class {names[0]!r}; set classes in the "
            "definition, or raise span_runs"
        )
    return tuple(names)


def label_of(facts: RunFacts, class_label: str, class_map: Mapping[str, str]) -> str | None:
    """Return the class of a run, or None if it has none.

    Args:
      facts: the run's facts.
      class_label: ``status``; ``cause`` (of failed runs alone); ``provider`` (its regions merged) or
        ``provider-region``; or the name of any metadata.
      class_map: from a value to its class; other values are their own class.
    """
    name = class_label if class_label in facts.labels else _ALIASES.get(class_label, class_label)
    value = _metadata_value(facts, name)
    if not value:
        return None
    return class_map.get(value, value) or None  # a value that maps to "" is not a label


def _metadata_value(facts: RunFacts, name: str) -> str | None:
    if name == "status":
        return _STATUS.get(facts.outcome or "")
    if name == CAUSE:
        return facts.labels.get(CAUSE) if facts.outcome in FAILED else None
    if name == "provider-region":
        return "-".join(part for part in (facts.provider, facts.region) if part)
    if name in _FACTS and (fact := getattr(facts, name)):
        return str(fact)
    return facts.labels.get(name)


def is_of_telemetry(feature: str) -> bool:
    """Return whether a feature of an example is unknown for a run without telemetry."""
    return not feature.startswith(_BESIDE_TELEMETRY)


def context_features(context: Iterable[Context], features: Sequence[str]) -> tuple[str, ...]:
    """Return the names of the context features, in the order of the kinds.

    Args:
      context: the kinds, in the definition's order.
      features: names of the telemetry features.
    """
    profile_features = [f"profile:{part}:{feature}" for feature in features for part in PROFILE_PARTS]
    names_of_kind = {
        "outcome": OUTCOME_FEATURES,
        "profile": (LENGTH_FEATURE, *profile_features),
        "neighbours": NEIGHBOUR_FEATURES,
        "log": LOG_FEATURES,
    }
    return tuple(name for kind in context for name in names_of_kind[kind])


def interval_us(text: str) -> int:
    """Return an interval as pandas writes it (``500ms``, ``10s``, ``1min``, ``h``) in microseconds.

    Raises:
      CimlError: another form, or zero.
    """
    match = _INTERVAL.fullmatch(text) if text.isascii() else None
    if match is None:
        raise CimlError(f"interval {text!r}: want a whole number with ms, s, min or h, such as 10s or 1min")
    value = int(match[1] or 1) * _UNITS_US[match[2]]
    if value == 0:
        raise CimlError(f"interval {text!r}: must be longer than zero")
    return value


def slice_of(text: str) -> slice:
    """Return a slice as Python writes it between brackets (``:2000``, ``-500:``, ``::2``); one number alone is the end.

    Raises:
      CimlError: another form, or a step of zero.
    """
    plain = text.replace(" ", "")
    parts = [int(part) if part else None for part in plain.split(":")] if _SLICER.fullmatch(plain) else []
    if not plain or not parts or (len(parts) == 3 and parts[2] == 0):
        raise CimlError(f"slicer {text!r:.60}: want a slice such as :2000, 1000:2000 or -500:")
    return slice(*parts)
