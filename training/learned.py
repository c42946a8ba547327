"""Which runs the versions of a model learned from: found in the snapshots that the trainer keeps."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from ciml.data_root import DataRoot, StoredDataset
from ciml.datasets.state import DatasetState
from ciml.errors import CimlError, EngineError
from ciml.events.records import RunFacts
from ciml.manifest.log import ManifestLog
from ciml.runs.run_log import stored_rows
from ciml.serving.registries import registered_models
from ciml.serving.registry import Candidate, Registry
from ciml.training.data.snapshot import Snapshot, facts_of_spans, joined_facts, read_snapshot
from ciml.training.exclusions import Exclusions, exclusions_of, stored_exclusions

#: Run ids that a warning lists; it counts the others.
_LISTED_RUNS = 3


@dataclass(frozen=True)
class AffectedVersion:
    """A pushed version of a model that learned from certain runs, such as excluded ones, or may have.

    Attributes:
      model: its name.
      version: of the model.
      labels: of the version, such as ``stable``; none for the champion's predecessor.
      runs: ids of these runs that it learned from, in the snapshot's order.
      fault: why they cannot be determined; "" if they can.
      withdrawn: whether the version is out of service.
    """

    model: str
    version: int
    labels: tuple[str, ...]
    runs: tuple[str, ...] = ()
    fault: str = ""
    withdrawn: bool = False

    def __str__(self) -> str:
        version = f"model {self.model} version {self.version} ({', '.join(self.labels) or 'kept for a rollback'})"
        if self.fault:
            return f"{version}: cannot determine whether it learned excluded runs: {self.fault}"
        count = len(self.runs)
        runs = "1 excluded run" if count == 1 else f"{count} excluded runs"
        run_list = ", ".join(self.runs[:_LISTED_RUNS])
        if count > _LISTED_RUNS:
            run_list += f" and {count - _LISTED_RUNS} more"
        return f"{version} learned {runs} ({run_list}) and is still served; replace it by ciml refresh, or roll back"


def models_with_excluded_runs(data: DataRoot, models: Sequence[str] | None = None) -> list[AffectedVersion]:
    """Return the served versions that learned from runs which are excluded now.

    Args:
      data: the data root of the models.
      models: their names; all by default.
    """
    names = registered_models(data) if models is None else models
    versions = [version for name in names for version in _versions(data, name, None)]
    return [version for version in versions if version.runs or version.fault]


def versions_that_learned(
    data: DataRoot, exclusions: Exclusions, models: Sequence[str] | None = None
) -> list[AffectedVersion]:
    """Return the pushed versions that learned from runs, served or not, also withdrawn ones.

    Args:
      data: the data root of the models.
      exclusions: the runs, whether they are excluded or not.
      models: their names; all by default.
    """
    names = registered_models(data) if models is None else models
    versions = [version for name in names for version in _versions(data, name, exclusions)]
    return [version for version in versions if version.runs or version.fault]


def candidate_learned_excluded(data: DataRoot, model: str, candidate: Candidate) -> list[str]:
    """Return the runs that a candidate learned from and that are excluded now.

    Raises:
      CimlError: that cannot be determined.
    """
    return _learned_runs(data, model, candidate, None)


def _versions(data: DataRoot, model: str, exclusions: Exclusions | None) -> Iterator[AffectedVersion]:
    """Yield the pushed versions of a model, each with the runs of exclusions; for None, the served, by stored ones."""
    state = Registry(data, model).state
    for version in state.served() if exclusions is None else state.pushed():
        labels = tuple(sorted(label for label, number in state.labels.items() if number == version))
        is_withdrawn = state.versions[version].withdrawn
        try:
            runs = _learned_runs(data, model, state.candidates[state.versions[version].candidate], exclusions)
        except EngineError:
            raise
        except CimlError as error:
            yield AffectedVersion(model, version, labels, (), str(error), is_withdrawn)
            continue
        yield AffectedVersion(model, version, labels, tuple(runs), "", is_withdrawn)


def _learned_runs(data: DataRoot, model: str, candidate: Candidate, exclusions: Exclusions | None) -> list[str]:
    """Return the training runs of a candidate that exclusions match; for None, the stored ones.

    Raises:
      CimlError: if its data set or its snapshot was removed, or altered.
    """
    facts = candidate.facts
    if "snapshot" not in facts or "dataset" not in facts:
        return []  # pushed by other means than a refresh
    dataset = data.dataset(facts["dataset"])
    try:
        state = dataset.state()
    except CimlError:
        if exclusions is None and not exclusions_of(data):
            return []  # without exclusions, the runs of a removed data set do not matter
        raise
    if exclusions is None:
        exclusions = stored_exclusions(dataset, state)
    if not exclusions:
        return []
    snapshot = read_snapshot(data.trainer(model), facts["snapshot"])
    learned = {run.run_id: RunFacts(run.run_id, "", run.build_name) for run in snapshot.runs("train", "dev")}
    known: list[Mapping[str, RunFacts]] = [learned]
    if exclusions.needs_facts:
        stored = _stored_facts(dataset, state, snapshot)
        known = [stored, joined_facts(dataset, state, stored)]  # a fact of either excludes a run, as in training
    return [run_id for run_id in learned if any(exclusions.reason(facts_of[run_id]) is not None for facts_of in known)]


def _stored_facts(dataset: StoredDataset, state: DatasetState, snapshot: Snapshot) -> dict[str, RunFacts]:
    """Return the facts of all runs of a snapshot by run id, as known when they were stored.

    Raises:
      IntegrityError: if the raw manifest does not have a run.
    """
    raw = dataset.raw(state)
    # A data set that was built again may have other spans.
    spans = (state.spans.get(span.span, {}).get(span.version) for span in snapshot.spans)
    facts = facts_of_spans(raw, [span for span in spans if span is not None])
    missing = {run.run_id for run in snapshot.runs()} - facts.keys()
    return facts | {run_id: row.facts for run_id, row in stored_rows(ManifestLog(raw), missing).items()}


@dataclass(frozen=True)
class Learning:
    """The part that a run had in a version of a model.

    Attributes:
      model: its name.
      version: of the model.
      role: ``train``, ``dev`` (calibration and choices) or ``test`` (the gate's figures).
      label: the class that the run had.
      rule: the trust rule that accepted it.
      snapshot: digest of the runs that the version learned from.
      withdrawn: whether the version is out of service.
    """

    model: str
    version: int
    role: str
    label: str
    rule: str
    snapshot: str
    withdrawn: bool


def parts_of_run(data: DataRoot, run_id: str) -> Iterator[Learning]:
    """Yield the part that a run had in each pushed version of each model. A snapshot that cannot be read is left out.

    Raises:
      EngineError: the store does not answer.
    """
    for model in registered_models(data):
        state = Registry(data, model).state
        for version in state.pushed():
            digest = state.candidates[state.versions[version].candidate].facts.get("snapshot")
            if not isinstance(digest, str):
                continue
            try:
                snapshot = read_snapshot(data.trainer(model), digest)
            except EngineError:
                raise
            except CimlError:
                continue
            classes = snapshot.resolved.classes
            for run in snapshot.runs():
                if run.run_id == run_id:
                    is_withdrawn = state.versions[version].withdrawn
                    yield Learning(model, version, run.role, classes[run.label], run.rule, digest, is_withdrawn)
