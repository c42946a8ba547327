"""The trust policy of a data root: applied, followed by running processes, and replaced by a file for a trial."""

from __future__ import annotations

import logging
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from ciml import stored_trust
from ciml.data_root import DataRoot
from ciml.errors import CimlError, IntegrityError
from ciml.events.records import Batch, OffsetRange, Origin, PendingRun
from ciml.manifest.log import ManifestLog
from ciml.settings import parse_toml
from ciml.stored_trust import apply_policy, policy_of, read_policies
from ciml.trust import POLICY_VARIABLE, TrustPolicy, evaluate_batch
from tests.transforms.samples import make_facts

GOLDEN = Path(__file__).parents[1] / "golden" / "present"
ALL = 'globs = 2\n[[rule]]\nname = "all"\ntrusted = true\nsource = ["*"]\n'
GATE = 'globs = 2\n[[rule]]\nname = "gate only"\ntrusted = true\npipeline = ["gate"]\n'


def document(text: str) -> Mapping[str, Any]:
    return parse_toml(text, "policy")


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> DataRoot:
    monkeypatch.delenv(POLICY_VARIABLE, raising=False)
    monkeypatch.setattr(stored_trust, "REREAD_S", 0.0)
    return DataRoot.open(tmp_path / "data")


def rules(root: DataRoot, path: Path | None = None) -> list[str]:
    return [rule.name for rule in policy_of(root, path).current().rules]


def test_the_last_applied_policy_is_in_force(root: DataRoot):
    built_in = rules(root)
    first = apply_policy(root.trust, document(ALL), "ann", "a trial", now_us=5)
    assert first is not None
    assert (first.number, first.author, first.reason, first.time_us) == (1, "ann", "a trial", 5)
    assert rules(root) == ["all"]
    apply_policy(root.trust, document(GATE), "bob", "stricter")
    assert rules(root) == ["gate only"]
    apply_policy(root.trust, None, "bob", "back")
    assert rules(root) == built_in
    assert [stored.author for stored in read_policies(root.trust).policies] == ["ann", "bob", "bob"]


def test_the_process_that_applies_a_policy_uses_it_at_once(root: DataRoot, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(stored_trust, "REREAD_S", 3600.0)
    assert rules(root) != ["all"]
    apply_policy(root.trust, document(ALL), "ann", "a trial")
    assert rules(root) == ["all"]


def test_the_same_policy_is_not_applied_twice(root: DataRoot):
    assert apply_policy(root.trust, None, "ann", "nothing to return from") is None
    assert apply_policy(root.trust, document(ALL), "ann", "a trial") is not None
    assert apply_policy(root.trust, document(ALL), "bob", "the same") is None
    assert read_policies(root.trust).version == 1


@pytest.mark.parametrize(
    ("text", "author", "reason", "message"),
    [
        ("[[rule]]\n", "ann", "why", "rule 1: want a name"),
        (ALL, " ", "why", "author: want one printable line"),
        (ALL, "ann", "two\nlines", "reason: want one printable line"),
    ],
)
def test_what_is_no_policy_is_not_applied(root: DataRoot, text: str, author: str, reason: str, message: str):
    with pytest.raises(CimlError, match=message):
        apply_policy(root.trust, document(text), author, reason)
    assert read_policies(root.trust).version == 0


def test_a_file_judges_for_a_trial_and_says_so(root: DataRoot, tmp_path: Path, caplog: pytest.LogCaptureFixture):
    apply_policy(root.trust, document(GATE), "ann", "strict")
    (tmp_path / "all.toml").write_text(ALL)
    with caplog.at_level(logging.WARNING, "ciml.stored_trust"):
        assert rules(root, tmp_path / "all.toml") == ["all"]
    assert "all.toml replaces the trust policy in" in caplog.text
    assert rules(root) == ["gate only"]


def test_the_environment_counts_where_the_data_root_has_no_policy(
    root: DataRoot, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    (tmp_path / "all.toml").write_text(ALL)
    monkeypatch.setenv(POLICY_VARIABLE, str(tmp_path / "all.toml"))
    assert rules(root) == ["all"]
    assert not caplog.records
    apply_policy(root.trust, document(GATE), "ann", "strict")
    assert rules(root) == ["gate only"]
    assert f"{POLICY_VARIABLE} is ignored" in caplog.text


def test_the_policy_of_the_raw_store_counts_for_a_data_root_without_one(root: DataRoot, tmp_path: Path):
    other = DataRoot.open(tmp_path / "other")
    apply_policy(other.trust, document(GATE), "ann", "strict")
    assert [rule.name for rule in policy_of(root, None, other).current().rules] == ["gate only"]
    apply_policy(root.trust, document(ALL), "ann", "a trial")
    assert [rule.name for rule in policy_of(root, None, other).current().rules] == ["all"]


def test_a_running_process_follows_the_policy(root: DataRoot):
    """Also in another process: what a worker of a pipeline has is a pickled copy."""
    source = policy_of(root)
    worker = pickle.loads(pickle.dumps(source))

    def decided() -> tuple[bool, str]:
        pending = PendingRun(Origin("t", 0, 1), "key", make_facts(1, pipeline="gate", auth="", adapter=""))
        evaluate_batch(Batch(OffsetRange("t", "T", 0, 0, 1), pending_runs=[pending]), worker)
        assert pending.trust is not None
        return pending.trust.trusted, pending.trust.rule

    assert decided() == (False, "unproved")
    apply_policy(root.trust, document(GATE), "ann", "strict")
    assert decided() == (True, "gate only")
    assert source.current().digest == TrustPolicy.parse(GATE).digest


def test_a_policy_is_reread_after_a_time(root: DataRoot, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(stored_trust, "REREAD_S", 3600.0)
    source = policy_of(root)
    before = source.current().digest
    delta = {"kind": "policy", "time_us": 1, "author": "a", "reason": "r", "policy": document(ALL)}
    assert ManifestLog(root.trust).try_append(1, delta)  # by another process
    assert source.current().digest == before
    monkeypatch.setattr(stored_trust, "REREAD_S", 0.0)
    assert source.current().digest == TrustPolicy.parse(ALL).digest


def test_a_policy_of_a_later_version_stops_the_judging(root: DataRoot):
    """A rule on a fact that this version does not know must not be left out."""
    later = {"rule": [{"name": "x", "trusted": True, "weather": ["fair"]}]}
    delta = {"kind": "policy", "time_us": 1, "author": "a", "reason": "r", "policy": later}
    assert ManifestLog(root.trust).try_append(1, delta)
    with pytest.raises(IntegrityError, match=r"unknown key 'weather'.*upgrade ciml"):
        policy_of(root).current()


def test_a_stored_policy_with_caps_and_quarantine_keeps_its_digest() -> None:
    *_, stored = read_policies(DataRoot.open(GOLDEN).trust).policies
    assert stored.policy is not None
    assert (stored.policy.caps, stored.policy.quarantine) == ((("author", 0.33),), True)
    assert stored.policy.digest == "356e19266ac57249"
