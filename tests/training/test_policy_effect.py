"""The effect of another policy on training equals the difference of the snapshots; versions that learned are named."""

from __future__ import annotations

from collections import Counter

from ciml.data_root import DataRoot
from ciml.datasets.definition import DatasetDefinition
from ciml.manifest.log import ManifestLog
from ciml.pipelines.datasets.update import create_dataset
from ciml.training.data.snapshot import Snapshot, make_snapshot
from ciml.training.policy_effect import policy_effect
from ciml.trust import TrustPolicy

NOBODY = TrustPolicy.parse('[[rule]]\nname = "closed"\ntrusted = false\n')


def by_run(snapshot: Snapshot) -> dict[str, tuple[str, str, str]]:
    return {run.run_id: (snapshot.resolved.classes[run.label], run.role, run.rule) for run in snapshot.runs()}


def test_it_is_the_difference_of_the_snapshots(data: DataRoot):
    create_dataset(data, DatasetDefinition(name="empty"))  # without a span: nothing to compare
    before = TrustPolicy.load()
    all_but_gate = '[[rule]]\nname = "others"\ntrusted = true\npipeline = "check"\n'
    after = TrustPolicy.parse(all_but_gate)
    old, new = (by_run(make_snapshot(data.dataset("providers"), policy)) for policy in (before, after))
    effect = policy_effect(data, before, after)
    expected = Counter(
        ("providers", label, role, joins, *(("no rule", rule) if joins else (rule, "no rule")))
        for joins, runs, others in ((True, new, old), (False, old, new))
        for run_id, (label, role, rule) in runs.items()
        if run_id not in others
    )
    assert effect.changes == expected
    assert {change.joins for change in effect.changes} == {True, False}
    assert (list(effect.versions), effect.faults) == ([], {})
    assert not policy_effect(data, before, before).changes


def test_runs_beyond_a_cap_leave_by_it(data: DataRoot):
    gated = '[[rule]]\nname = "gated"\ntrusted = true\npipeline = "gate"\n'
    effect = policy_effect(data, TrustPolicy.parse(gated), TrustPolicy.parse("[caps]\nauthor = 0.3\n" + gated))
    assert {(change.joins, change.before, change.after) for change in effect.changes} == {
        (False, "gated", "cap: author")
    }
    assert "test" not in {change.role for change in effect.changes}
    capped = make_snapshot(data.dataset("providers"), TrustPolicy.parse("[caps]\nauthor = 0.3\n" + gated))
    assert effect.changes.total() == capped.withheld["cap: author"]


def test_versions_that_learned_from_leaving_runs_are_named(golden: DataRoot):
    effect = policy_effect(golden, TrustPolicy.load(), NOBODY)
    learned = sum(number for change, number in effect.changes.items() if change.role != "test")
    (version,) = effect.versions
    assert (version.model, version.version, version.labels, len(version.runs)) == ("provider", 1, ("stable",), learned)
    assert effect.to_json()["models"][0]["runs"] == learned
    assert not policy_effect(golden, NOBODY, TrustPolicy.load()).versions  # they join


def test_a_damaged_data_set_hides_no_other(data: DataRoot):
    data.raw.delete(ManifestLog(data.raw).path(2))
    effect = policy_effect(data, TrustPolicy.load(), NOBODY)
    assert not effect.changes
    assert "is missing, and a data set was built from it" in effect.faults["providers"]
