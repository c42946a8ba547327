"""Served models that learned from runs which were excluded later. An exclusion withdraws no model; it warns."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from ciml.data_root import DataRoot
from ciml.errors import CimlError, EngineError
from ciml.events.records import RunFacts
from ciml.serving.registry import Registry, registered_models
from ciml.training.data.snapshot import facts_of_spans, read_snapshot
from ciml.training.exclusion_store import exclusions_of, stored_exclusions

#: Run ids that a warning names; it counts the rest.
_NAMED = 3


@dataclass(frozen=True)
class LearnedExcluded:
    """A served version of a model that learned from excluded runs.

    Attributes:
      model: its name.
      version: of the model.
      labels: of the version, such as ``stable``; none for the champion's predecessor.
      runs: ids of the excluded training runs, in the snapshot's order.
      fault: why they cannot be determined; "" if they can.
    """

    model: str
    version: int
    labels: tuple[str, ...]
    runs: tuple[str, ...] = ()
    fault: str = ""

    def __str__(self) -> str:
        which = f"model {self.model} version {self.version} ({', '.join(self.labels) or 'kept for a rollback'})"
        if self.fault:
            return f"{which}: cannot determine whether it learned excluded runs: {self.fault}"
        count = len(self.runs)
        named = ", ".join(self.runs[:_NAMED]) + (f" and {count - _NAMED} more" if count > _NAMED else "")
        runs = "1 excluded run" if count == 1 else f"{count} excluded runs"
        return f"{which} learned {runs} ({named}) and is still served; replace it by ciml refresh, or roll back"


def learned_excluded(data: DataRoot, models: Sequence[str] | None = None) -> list[LearnedExcluded]:
    """Return the served versions that learned from runs which are excluded now.

    Args:
      data: the data root of the models.
      models: their names; all by default.
    """
    return [
        found
        for model in (registered_models(data) if models is None else models)
        for found in _of_model(data, model)
        if found.runs or found.fault
    ]


def _of_model(data: DataRoot, model: str) -> Iterator[LearnedExcluded]:
    state = Registry(data, model).state
    for version in state.served():
        labels = tuple(sorted(label for label, number in state.labels.items() if number == version))
        facts = state.candidates[state.versions[version].candidate].facts
        if "snapshot" not in facts or "dataset" not in facts:
            continue  # pushed by other means than a refresh
        try:
            runs = _excluded_runs(data, model, facts["dataset"], facts["snapshot"])
        except EngineError:
            raise
        except CimlError as error:  # its data set or its snapshot was removed, or altered
            yield LearnedExcluded(model, version, labels, fault=str(error))
            continue
        yield LearnedExcluded(model, version, labels, tuple(runs))


def _excluded_runs(data: DataRoot, model: str, dataset_name: str, digest: str) -> list[str]:
    dataset = data.dataset(dataset_name)
    try:
        state = dataset.state()
    except CimlError:
        if not exclusions_of(data):
            return []  # nothing that a removed data set's runs could match
        raise
    exclusions = stored_exclusions(dataset, state)
    if not exclusions:
        return []
    snapshot = read_snapshot(data.trainer(model), digest)
    learned = [(run.run_id, run.build_name) for run in snapshot.runs("train", "dev")]
    facts = {run_id: RunFacts(run_id, "", job) for run_id, job in learned}
    if exclusions.needs_facts:
        versions = [state.spans[span.span][span.version] for span in snapshot.spans]
        facts |= facts_of_spans(dataset.raw(state), versions)
    return [run_id for run_id, _ in learned if exclusions.reason(facts[run_id]) is not None]
