"""The effect of another trust policy on training: the runs that join and leave snapshots, and the models."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from ciml.data_root import DataRoot
from ciml.errors import CimlError, EngineError, NoTrainingDataError
from ciml.training.data.snapshot import JudgedRun, Role, facts_of_spans, judge_runs
from ciml.training.exclusions import Exclusion, Exclusions
from ciml.training.learned import AffectedVersion, versions_that_learned
from ciml.trust import TrustPolicy


class Change(NamedTuple):
    """A change of some runs of a data set.

    Attributes:
      dataset: its name.
      label: name of the runs' class.
      role: of the runs.
      joins: whether the runs join the next snapshot; they leave it otherwise.
      before: the rule that accepts them now, or why they are left out: a rule, ``cap: author``.
      after: the same by the other policy.
    """

    dataset: str
    label: str
    role: Role
    joins: bool
    before: str
    after: str


@dataclass(frozen=True)
class PolicyEffect:
    """The effect of another trust policy on training.

    Attributes:
      changes: number of runs that join or leave snapshots.
      versions: pushed versions of models that learned from runs that leave.
      faults: why the runs of a data set cannot be determined, by its name.
    """

    changes: Counter[Change]
    versions: Sequence[AffectedVersion]
    faults: Mapping[str, str]

    def to_json(self) -> dict[str, Any]:
        return {
            "snapshots": [
                {
                    "dataset": change.dataset,
                    "class": change.label,
                    "role": change.role,
                    "change": "joins" if change.joins else "leaves",
                    "from": change.before,
                    "to": change.after,
                    "runs": number,
                }
                for change, number in sorted(self.changes.items())
            ],
            "models": [
                {
                    "model": version.model,
                    "version": version.version,
                    "labels": list(version.labels),
                    "withdrawn": version.withdrawn,
                    "runs": len(version.runs),
                    "fault": version.fault,
                }
                for version in self.versions
            ],
            "faults": dict(self.faults),
        }


def policy_effect(data: DataRoot, before: TrustPolicy, after: TrustPolicy) -> PolicyEffect:
    """Return the effect that a trust policy would have on training.

    Args:
      data: the data root of data sets and models.
      before: the policy by which the next snapshots would be made.
      after: the policy in its place.

    Raises:
      EngineError: the store does not answer.
    """
    changes: Counter[Change] = Counter()
    leaving: dict[str, None] = {}
    faults: dict[str, str] = {}
    for name in data.dataset_names():
        try:
            _compare(data, name, before, after, changes, leaving)
        except NoTrainingDataError:
            continue  # no span is sealed yet
        except EngineError:
            raise
        except CimlError as error:
            faults[name] = str(error)
    exclusions = Exclusions(tuple(Exclusion("leaves", run_id) for run_id in leaving))
    return PolicyEffect(changes, versions_that_learned(data, exclusions) if leaving else [], faults)


def _compare(
    data: DataRoot,
    name: str,
    before: TrustPolicy,
    after: TrustPolicy,
    changes: Counter[Change],
    leaving: dict[str, None],
) -> None:
    """Add the changes of a data set, and the ids of its runs that leave."""
    dataset = data.dataset(name)
    state = dataset.state()
    facts = facts_of_spans(dataset.raw(state), state.latest())
    pairs = zip(*(judge_runs(dataset, state, facts, policy) for policy in (before, after)), strict=True)
    classes = state.resolved.classes if state.resolved is not None else ()
    for old, new in pairs:
        joins = new.omitted is None
        if joins == (old.omitted is None):
            continue
        changes[Change(name, classes[new.run.label], new.run.role, joins, _decision(old), _decision(new))] += 1
        if not joins:
            leaving[new.run.run_id] = None


def _decision(judged: JudgedRun) -> str:
    return judged.run.rule if judged.omitted is None else judged.omitted[1]
