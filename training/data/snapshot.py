"""Snapshots: the exact runs that a model is trained and tested on, and the excluded ones.

A snapshot names span versions and, of each, the runs that are trusted *now*: the trust policy is evaluated again on the
facts of the raw manifest, joined with all updates. The decision at ingestion is not used. Trusted training runs beyond
the policy's caps are withheld, and so are runs that are older than a window. Equal digests mean equal runs, labels,
rules and weights. Splits and roles follow from the facts known when a run was stored: no later update moves a run
between train, dev and test.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from functools import cached_property
from typing import Any, ClassVar, Literal, NamedTuple

import numpy as np
from msgspec import field

from ciml.data_root import StoredDataset
from ciml.datasets.definition import DatasetDefinition, ResolvedDefinition
from ciml.datasets.state import DatasetState, ExampleFile, SpanVersion
from ciml.digest import canonical_json, sha256_hex, sha256_json
from ciml.errors import CimlError, IntegrityError, InvalidSettingError, NoTrainingDataError
from ciml.events.records import Record, RunFacts, facts_of_row, rows_of
from ciml.manifest.log import ManifestLog
from ciml.runs.state import open_raw
from ciml.settings import Settings, seconds_of
from ciml.storage import Store
from ciml.storage.json_files import read_object, seal
from ciml.training.exclusions import Exclusions, stored_exclusions
from ciml.transforms.examples.prepare import split_of
from ciml.trust import TrustPolicy, beyond_caps, evaluate

Role = Literal["train", "dev", "test"]
ROLES: tuple[Role, ...] = ("train", "dev", "test")
#: The folders of a materialised snapshot: the transform, and the normalised examples.
TRANSFORM_FOLDER = "transform"
RECORDS_FOLDER = "records"

#: Entry of a snapshot from which an erasure has removed runs: their number. Its name is then that of the one before.
ERASED_RUNS = "erased_runs"
#: Weights of train, and of dev taken from train, if a definition gives dev no weight.
_DEV_FROM_TRAIN = (17, 3, 0)
#: How long after the last commit of its data set a run may end, microseconds: machines have their own clocks.
_CLOCK_ERROR_US = 24 * 3600 * 1_000_000


class SnapshotRun(Record, frozen=True, array_like=True, forbid_unknown_fields=True, gc=False):
    """A run of a snapshot.

    Attributes:
      run_id: the encoded run id.
      split: the example's own split. Normalisation is computed from all of ``train``.
      role: as ``split``; but without a dev split in the definition, some train runs get the role dev.
      label: position in the resolved definition's classes.
      rule: the trust rule that accepted it.
      build_name: its job.
      digest: of its example.
    """

    run_id: str
    split: str
    role: Role
    label: int
    rule: str
    build_name: str
    digest: str


class SnapshotSpan(Record, frozen=True, omit_defaults=True, forbid_unknown_fields=True, gc=False):
    """A span version, its files, and its selected runs in the span's order.

    Attributes:
      weights: of the runs, where they decay with age; 1 for the newest ones and for held-out ones. None without decay.
    """

    span: int
    version: int
    files: Mapping[str, tuple[ExampleFile, ...]]
    runs: tuple[SnapshotRun, ...]
    weights: tuple[float, ...] = ()


class Snapshot(Settings, frozen=True):
    """The selected runs of a data set.

    Attributes:
      dataset: the data set's name.
      resolved: its definition.
      policy: digest of the trust policy.
      spans: the span versions with a trusted run, in order.
      untrusted: number of rejected examples by the deciding trust rule.
      excluded: number of examples left out by an exclusion (a purge), by its reason.
      withheld: number of trusted examples left out, by reason: ``cap: author``, ``window: 90d``.
      window: how old its runs may be, counted back from the newest training run; None for any age.
      half_life: the age at which a training run weighs half; None where all weigh the same.
    """

    title: ClassVar[str] = "snapshot"

    dataset: str
    resolved: ResolvedDefinition
    policy: str
    spans: tuple[SnapshotSpan, ...]
    untrusted: Mapping[str, int] = field(default_factory=dict)
    excluded: Mapping[str, int] = field(default_factory=dict)
    withheld: Mapping[str, int] = field(default_factory=dict)
    window: str | None = None
    half_life: str | None = None

    def to_json(self) -> dict[str, Any]:
        value = {**super().to_json(), "resolved": self.resolved.to_json()}
        # Without these, versions before 0.2 read such a snapshot.
        return {key: item for key, item in value.items() if item or key not in ("withheld", "window", "half_life")}

    @cached_property
    def weights(self) -> np.ndarray | None:
        """The weight of each run of `runs`, float32 [n]; None where all weigh the same."""
        if self.half_life is None:
            return None
        return np.array([weight for span in self.spans for weight in span.weights], np.float32)

    @cached_property
    def digest(self) -> str:
        """Hex sha256 of the runs with their labels and rules, the files, the definition and the policy.

        Omitted runs do not count: more rejected runs alone do not make a new snapshot.
        """
        omitted = ("untrusted", "excluded", "withheld")
        return sha256_json({key: value for key, value in self.to_json().items() if key not in omitted})

    def runs(self, *roles: Role) -> Iterator[SnapshotRun]:
        """Yield the runs of the given roles (default: all), span by span."""
        for span in self.spans:
            for run in span.runs:
                if not roles or run.role in roles:
                    yield run

    @property
    def dev_from_train(self) -> bool:
        """Whether the dev runs were taken from train: the definition gives dev no weight."""
        return not _has_dev_split(self.resolved.definition)

    def counts(self) -> dict[str, dict[str, int]]:
        """Return the number of runs by role and class name, zeros included."""
        counts: dict[str, dict[str, int]] = {role: dict.fromkeys(self.resolved.classes, 0) for role in ROLES}
        for run in self.runs():
            counts[run.role][self.resolved.classes[run.label]] += 1
        return counts

    def summary(self) -> dict[str, Any]:
        """Return the snapshot without runs and files, for stored results; ``rules`` counts the runs by rule."""
        rules = Counter(run.rule for run in self.runs())
        return {
            "digest": self.digest,
            "spans": [[span.span, span.version] for span in self.spans],
            "counts": self.counts(),
            "rules": dict(sorted(rules.items())),
            "untrusted": dict(self.untrusted),
            "excluded": dict(self.excluded),
            "withheld": dict(self.withheld),
            **{key: value for key in ("window", "half_life") if (value := getattr(self, key))},
        }

    def rejected(self) -> dict[str, int]:
        """Return the number of omitted examples by trust rule, cap or window; all exclusions as ``excluded``."""
        excluded = {"excluded": sum(self.excluded.values())} if self.excluded else {}
        return {**self.untrusted, **self.withheld, **excluded}


class JudgedRun(NamedTuple):
    """The decision on a run of a data set.

    Attributes:
      span: index of its span version, in the order of `DatasetState.latest`.
      run: as the snapshot holds it, if it does; the rule is "" if an exclusion decided.
      facts: joined with all updates.
      omitted: why the snapshot omits the run: the kind, a field of `Snapshot`, and the reason; None if it does not.
    """

    span: int
    run: SnapshotRun
    facts: RunFacts
    omitted: tuple[str, str] | None


def make_snapshot(
    dataset: StoredDataset,
    policy: TrustPolicy,
    exclusions: Exclusions | None = None,
    *,
    window: str | None = None,
    half_life: str | None = None,
) -> Snapshot:
    """Select the trusted runs of a data set's latest span versions.

    Args:
      dataset: a data set.
      policy: the trust policy, evaluated on the facts of the raw manifest.
      exclusions: runs to exclude regardless of the policy; by default those that are stored (`ciml exclude`).
      window: how old a run may be, as in `ciml.training.experiment.Experiment`.
      half_life: the age at which a training run weighs half, as there.

    Raises:
      CimlError: if the data set does not exist, or has no sealed span.
      IntegrityError: if its manifest names a run that the raw manifest lacks.
    """
    state = dataset.state()
    facts = facts_of_spans(dataset.raw(state), state.latest())
    return snapshot_of(dataset, state, facts, policy, exclusions, window=window, half_life=half_life)


def snapshot_of(
    dataset: StoredDataset,
    state: DatasetState,
    facts: Mapping[str, RunFacts],
    policy: TrustPolicy,
    exclusions: Exclusions | None = None,
    *,
    window: str | None = None,
    half_life: str | None = None,
) -> Snapshot:
    """Do as `make_snapshot` for a data set whose state, and the facts of its runs by run id, are loaded."""
    resolved, _ = _definition_of(dataset, state)
    judged = judge_runs(dataset, state, facts, policy, exclusions, window=window)
    omitted: dict[str, Counter[str]] = {kind: Counter() for kind in ("untrusted", "excluded", "withheld")}
    accepted: dict[int, list[SnapshotRun]] = {}
    weights: dict[int, list[float]] = {}
    newest_us = _newest_training_us(judged, state.time_us)
    for decision in judged:
        if decision.omitted is None:
            accepted.setdefault(decision.span, []).append(decision.run)
            if half_life is not None:
                weights.setdefault(decision.span, []).append(_weight(decision, newest_us, half_life))
        else:
            kind, reason = decision.omitted
            omitted[kind][reason] += 1
    spans = []
    for index, span in enumerate(state.latest()):
        if runs := accepted.get(index):
            splits = {run.split for run in runs}
            files = {split: files for split, files in span.files.items() if split in splits}
            spans.append(SnapshotSpan(span.span, span.version, files, tuple(runs), tuple(weights.get(index, ()))))
    counts = {kind: dict(reasons) for kind, reasons in omitted.items()}
    return Snapshot(dataset.name, resolved, policy.digest, tuple(spans), **counts, window=window, half_life=half_life)


def judge_runs(
    dataset: StoredDataset,
    state: DatasetState,
    facts: Mapping[str, RunFacts],
    policy: TrustPolicy,
    exclusions: Exclusions | None = None,
    *,
    window: str | None = None,
) -> list[JudgedRun]:
    """Return the decision on each run of a data set's latest span versions. Arguments and errors as `snapshot_of`."""
    if exclusions is None:
        exclusions = stored_exclusions(dataset, state)
    joined = joined_facts(dataset, state, facts)
    _, definition = _definition_of(dataset, state)
    judged = []
    for index, span in enumerate(state.latest()):
        for run in span.runs:
            run_facts = facts.get(run.run_id)
            if run_facts is None:
                raise IntegrityError(f"data set {dataset.name!r}: run {run.run_id} is missing in the raw manifest")
            rule = ""
            reason = exclusions.reason(run_facts) or exclusions.reason(joined[run.run_id])
            omitted = None if reason is None else ("excluded", reason)
            if omitted is None:
                trust = evaluate(policy, joined[run.run_id])
                rule = trust.rule
                omitted = None if trust.trusted else ("untrusted", rule)
            role = _role_of(run.split, run_facts, definition)
            selected = SnapshotRun(run.run_id, run.split, role, run.label, rule, run.build_name, run.digest)
            judged.append(JudgedRun(index, selected, joined[run.run_id], omitted))
    if window is not None:
        judged = _within(judged, window, state.time_us)  # before the caps, which are shares of what is learned
    return _capped(judged, policy, definition.salt) if policy.caps else judged


def _definition_of(dataset: StoredDataset, state: DatasetState) -> tuple[ResolvedDefinition, DatasetDefinition]:
    if state.resolved is None or state.definition is None:
        raise NoTrainingDataError(
            f"data set {dataset.name!r} has no sealed span yet: ciml dataset update {dataset.name} --seal"
        )
    return state.resolved, state.definition


def _ended_us(facts: RunFacts) -> int:
    """Return when a run ended, epoch microseconds. One without a time counts as older than all others."""
    return facts.end_us or facts.start_us or 0


def _newest_training_us(judged: Iterable[JudgedRun], committed_us: int) -> int:
    """Return when the newest selected training run ended, epoch microseconds; 0 without one.

    An end after the last commit of the data set is of a wrong clock. All other runs would count as old by it.
    """
    ends = (_ended_us(entry.facts) for entry in judged if entry.omitted is None and entry.run.role == "train")
    return max((end for end in ends if end <= committed_us + _CLOCK_ERROR_US), default=0)


def _within(judged: list[JudgedRun], window: str, committed_us: int) -> list[JudgedRun]:
    """Return the decisions with the runs that are older than the window withheld, whatever their role.

    A model is tested on what it is for: held-out runs that are older would speak for a model of old data.
    """
    since_us = _newest_training_us(judged, committed_us) - seconds_of(window) * 1e6
    omitted = "withheld", f"window: {window}"
    return [
        entry._replace(omitted=omitted) if entry.omitted is None and _ended_us(entry.facts) < since_us else entry
        for entry in judged
    ]


def _weight(decision: JudgedRun, newest_us: int, half_life: str) -> float:
    """Return the weight of a run by its age; 1 for a held-out one."""
    if decision.run.role == "test":
        return 1.0
    age_s = max(0, newest_us - _ended_us(decision.facts)) / 1e6
    return float(round(0.5 ** (age_s / seconds_of(half_life)), 6))


def _capped(judged: list[JudgedRun], policy: TrustPolicy, salt: str) -> list[JudgedRun]:
    """Return the decisions with the training and dev runs beyond the policy's caps withheld, class by class.

    A model learns from both: without early stopping, dev runs are trained on. The order of a keyed digest of the run id
    decides which runs of a value stay: no submitter chooses it, and a further run moves few others.
    """
    by_class: dict[int, list[tuple[str, int]]] = {}
    for index, decision in enumerate(judged):
        if decision.omitted is None and decision.run.role != "test":
            key = sha256_hex(f"{salt}\0cap\0{decision.run.run_id}".encode())
            by_class.setdefault(decision.run.label, []).append((key, index))
    result = list(judged)
    for keyed in by_class.values():
        indices = [index for _, index in sorted(keyed)]
        for position, cap in beyond_caps(policy.caps, [judged[index].facts for index in indices]).items():
            result[indices[position]] = judged[indices[position]]._replace(omitted=("withheld", f"cap: {cap}"))
    return result


def _role_of(split: str, facts: RunFacts, definition: DatasetDefinition) -> Role:
    """Return the role of a run of a split. Without a dev split, the changes of train are divided into train and dev."""
    if split == "train" and not _has_dev_split(definition):
        split = split_of(facts.project, facts.change, facts.run_id, f"{definition.salt}\0dev", _DEV_FROM_TRAIN)
    return split  # type: ignore[return-value]


def _has_dev_split(definition: DatasetDefinition) -> bool:
    return definition.tdt_split[1] > 0


def joined_facts(dataset: StoredDataset, state: DatasetState, facts: Mapping[str, RunFacts]) -> Mapping[str, RunFacts]:
    """Return the facts by which the runs of a data set are trusted now: joined with all updates in the raw manifest.

    Args:
      dataset: a data set.
      state: its state.
      facts: of its runs, by run id. Facts that examples do not hold may be missing.
    """
    if state.listing is not None:
        return facts  # the runs of its own listing, which no event updates
    return open_raw(dataset.raw(state))[1].index.subjects.join_all(facts)


def facts_of_spans(raw: Store, spans: Iterable[SpanVersion]) -> dict[str, RunFacts]:
    """Return the raw manifest's facts of the selected runs of spans, as known when they were stored, by run id."""
    indices_by_version: dict[int, set[int]] = {}
    for span in spans:
        for version, index in span.selected:
            indices_by_version.setdefault(version, set()).add(index)
    log = ManifestLog(raw)
    facts: dict[str, RunFacts] = {}
    for version, indices in sorted(indices_by_version.items()):
        try:
            runs = rows_of(log.read(version))
        except FileNotFoundError:
            raise IntegrityError(
                f"{log.store.url(log.path(version))} is missing, and a data set was built from it"
            ) from None
        for index in indices:
            if index >= len(runs):
                raise IntegrityError(f"raw manifest: version {version} has no run {index}, named by a data set")
            run = facts_of_row(runs[index])
            facts[run.run_id] = run
    return facts


def snapshot_path(digest: str) -> str:
    """Return the path of a snapshot below the model's trainer folder."""
    return f"snapshots/{digest}.json"


def write_snapshot(trainer: Store, snapshot: Snapshot) -> str:
    """Write a snapshot exclusively below ``DATA/trainer/<model>``; return its path.

    An existing one is kept. It has the same runs; its counts of omitted runs may be others.
    """
    path = snapshot_path(snapshot.digest)
    trainer.create(path, seal(canonical_json({"digest": snapshot.digest, **snapshot.to_json()})))
    return path


def read_snapshot(trainer: Store, digest: str) -> Snapshot:
    """Read a snapshot. Raises `IntegrityError` if its content does not match its name."""
    path = snapshot_path(digest)
    where = trainer.url(path)
    try:
        value = read_object(trainer.read(path), where)
        is_erased = ERASED_RUNS in value
        snapshot = Snapshot.from_json({key: item for key, item in value.items() if key not in ("digest", ERASED_RUNS)})
    except FileNotFoundError:
        raise CimlError(f"no snapshot {where}") from None
    except InvalidSettingError as error:
        raise IntegrityError(f"{where} is not a snapshot: {error}") from None
    if snapshot.digest != digest and not is_erased:
        raise IntegrityError(f"{where} was altered: its digest is {snapshot.digest}")
    return snapshot


def check_trainable(snapshot: Snapshot, *roles: Role) -> None:
    """Raise `NoTrainingDataError` unless the runs of these roles have several classes."""
    counts = Counter(run.label for run in snapshot.runs(*roles))
    if len(counts) < 2:
        texts = [f"{runs} training runs, all {snapshot.resolved.classes[label]}" for label, runs in counts.items()]
        raise no_training_runs(snapshot, *texts)


def no_training_runs(snapshot: Snapshot, message: str = "no training runs") -> NoTrainingDataError:
    """Return the error of a snapshot without training runs, with the remedy where the trust policy left runs out."""
    untrusted = sum(snapshot.untrusted.values())
    message += f": {untrusted} examples are untrusted, {sum(1 for _ in snapshot.runs('test'))} are test runs"
    if withheld := sum(snapshot.withheld.values()):
        message += f", {withheld} are beyond the policy's caps or the window"
    if untrusted or withheld:
        message += "; ciml trust check shows why, and --trust-policy FILE or CIML_TRUST_POLICY names another policy"
    return NoTrainingDataError(f"data set {snapshot.dataset!r} has {message}")


def shard_name(role: Role, first: int, rows: int) -> str:
    """Return the file name of some rows of a role. It follows from the rows, so a retried bundle overwrites the file.

    Args:
      role: of the rows.
      first: the lowest ordinal of the rows.
      rows: their number.
    """
    return f"{role}/{first:09d}-{rows}.tfrecord"
