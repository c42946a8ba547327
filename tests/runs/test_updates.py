"""Updates in the raw manifest: facts and trust of runs depend on what was said, not on when it arrived."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ciml.events.records import Batch, FactUpdate, OffsetRange, Origin, Outcome, RawFile, RunFacts, Trust
from ciml.events.reviews import PARTLY_APPROVED, merged_subject
from ciml.events.updates import join_facts, merge_statements, statements_of
from ciml.limits import MAX_SUBJECT_RUNS
from ciml.manifest.checkpoints import Checkpoints, Limits
from ciml.manifest.log import ManifestLog, catch_up, commit
from ciml.runs import accounting
from ciml.runs.accounting import reconcile
from ciml.runs.known_subjects import Subject, Subjects
from ciml.runs.latest_runs import changed_runs, latest_runs
from ciml.runs.state import RAW, RawState
from ciml.runs.verify import Audit, Verification
from ciml.storage import LocalStore
from tests.raw_manifest import verify_manifest
from tests.tier import tries

LIMITS = Limits(deltas=3)


def judge(facts: RunFacts) -> Trust:
    trusted = facts.auth != "" and facts.fork == "no" and facts.review in ("approved", "merged")
    return Trust(trusted, "reviewed" if trusted else "no rule", "p")


def run(
    number: int, subjects: tuple[str, ...] = ("a",), auth: str = "hmac-sha256", source: str = "github", **more: Any
) -> RunFacts:
    more = {"outcome": "success", "fork": "no", **more}
    return RunFacts(
        f"{source}~{number}~1", f"{number}", "job", source=source, auth=auth, subjects=subjects, **more
    )  # fmt: skip


@dataclass
class Manifest:
    """A raw manifest in a folder, and a topic whose messages are numbered."""

    folder: Path
    offset: int = 0

    def __post_init__(self) -> None:
        self.log = ManifestLog(LocalStore(str(self.folder)))
        self.checkpoints = Checkpoints(self.log, RAW, LIMITS)
        self.state = self.open()

    def open(self) -> RawState:
        state = self.checkpoints.open()
        catch_up(self.log, state)
        return state

    def message(self, what: RunFacts | FactUpdate, key: str = "") -> Outcome:
        origin = Origin("t", 0, self.offset)
        self.offset += 1
        key = key or f"github {origin.offset}"
        if isinstance(what, FactUpdate):
            return Outcome("update", origin, key, updates=(what,))
        digest = f"{what.run_id}.{what.owner}"
        return Outcome("run", origin, key, what, trust=judge(what), file=RawFile(f"runs/{digest}", digest, 1, 1))

    def add(self, *outcomes: Outcome, checkpoint: bool = False) -> dict[str, Any]:
        batches = [
            Batch(OffsetRange("t", "T", 0, one.origin.offset, one.origin.offset + 1), settled=[one]) for one in outcomes
        ]
        version = commit(self.log, self.state, lambda: reconcile(self.state, batches, 1, judge))
        if checkpoint:
            while self.checkpoints.maintain():
                pass
            self.state = self.open()
        return self.log.read(version) if version else {}

    def trusted(self, run_id: str) -> bool:
        known = self.state.index.run(run_id)
        assert known is not None
        return known.trusted

    def facts(self) -> dict[str, RunFacts]:
        return {one.facts.run_id: one.facts for one in latest_runs(self.log, self.state)}


@pytest.fixture
def manifest(tmp_path: Path) -> Manifest:
    return Manifest(tmp_path)


def says(
    subject: str = "a", auth: str = "hmac-sha256", when: int = 1, source: str = "github", **facts: str
) -> FactUpdate:
    return FactUpdate(source, subject, facts, auth, when)


def test_a_change_of_trust_is_recorded_once(manifest: Manifest) -> None:
    delta = manifest.add(manifest.message(run(1)), manifest.message(run(2, ("b",))))
    assert "updates" not in delta
    assert "trust_changes" not in delta
    update = manifest.message(says(review="approved"), "github u")
    delta = manifest.add(update)
    assert delta["updates"][0]["updates"] == [
        {"source": "github", "subject": "a", "facts": {"review": "approved"}, "auth": "hmac-sha256", "time_us": 1}
    ]
    assert delta["trust_changes"] == [{"run_id": "github~1~1", "trust": Trust(True, "reviewed", "p").to_json()}]
    assert delta["runs"] == []
    assert manifest.add(update) == {}  # the same offset
    delta = manifest.add(manifest.message(says(review="approved"), "github u"))  # the same event
    assert ([record["reason"] for record in delta["repeats"]], delta.get("updates")) == (["event"], None)
    delta = manifest.add(manifest.message(says(review="approved", when=2)))  # says nothing new
    assert "trust_changes" not in delta
    assert manifest.state.trust == {(False, "no rule"): 2}
    assert manifest.state.trust_changes == {(True, "reviewed"): 1}
    delta = manifest.add(manifest.message(says(fork="yes", when=0)))
    assert [(one["run_id"], one["trust"]["trusted"]) for one in delta["trust_changes"]] == [("github~1~1", False)]
    latest = {one.facts.run_id: one.trust for one in latest_runs(manifest.log, manifest.state)}
    assert latest["github~1~1"] == Trust(False, "no rule", "p")  # the last of two changes


def test_an_update_concerns_runs_of_its_own_source_and_subject(manifest: Manifest) -> None:
    manifest.add(*(manifest.message(one) for one in (run(1), run(2, ("b",)), run(3, source="gitlab"), run(4, ()))))
    manifest.add(manifest.message(says(review="merged")), manifest.message(says(review="merged", source="zuul")))
    assert [run_id for run_id in manifest.facts() if manifest.trusted(run_id)] == ["github~1~1"]


def test_a_proved_event_reclaims_a_run_that_anybody_could_have_claimed(manifest: Manifest) -> None:
    manifest.add(manifest.message(run(1, auth="", outcome="failure", owner="mallory")))
    manifest.add(manifest.message(says(review="merged")))
    assert not manifest.trusted("github~1~1")
    delta = manifest.add(manifest.message(run(1, owner="alice")))
    assert [record["trust"]["trusted"] for record in delta["reclaims"]] == [True]
    assert manifest.facts()["github~1~1"] == run(1, owner="alice", review="merged")


def test_a_review_counts_for_a_stored_run_that_names_its_change_itself(manifest: Manifest) -> None:
    subject = "sha:p/1"
    manifest.add(manifest.message(run(1, (subject,), change="42", branch="main")), checkpoint=True)
    only = {"change": "42", "branch": "main"}
    review = FactUpdate("github", subject, {"review": "approved"}, "hmac-sha256", 1, only, "grace")
    manifest.add(manifest.message(review), checkpoint=True)
    assert manifest.trusted("github~1~1")
    manifest.add(manifest.message(FactUpdate("github", subject, {}, "hmac-sha256", 2, {**only, "branch": "mine"})))
    assert not manifest.trusted("github~1~1")
    assert manifest.facts()["github~1~1"].review == ""


def test_a_row_keeps_what_was_known_when_it_was_stored(manifest: Manifest) -> None:
    manifest.add(manifest.message(says(change="12", review="approved")))
    delta = manifest.add(manifest.message(run(1)))
    assert delta["runs"][0]["joined"] == {"change": "12", "review": "approved"}
    assert "change" not in delta["runs"][0]["mention"]
    delta = manifest.add(manifest.message(run(2, ("b",))))
    assert "joined" not in delta["runs"][0]


def test_an_untrusted_event_corrects_a_run_again_once_it_is_not_trusted_any_more(manifest: Manifest) -> None:
    manifest.add(manifest.message(run(1, review="approved")))
    delta = manifest.add(manifest.message(run(1, ("z",), outcome="failure")))
    assert [record["reason"] for record in delta["ignored"]] == ["less_trusted"]
    manifest.add(manifest.message(says(fork="yes")), checkpoint=True)
    delta = manifest.add(manifest.message(run(1, ("z",), outcome="failure")))
    assert [(record["reason"], record["lowered"]) for record in delta["corrections"]] == [("outcome", True)]
    delta = manifest.add(manifest.message(run(2)), manifest.message(run(2, outcome="failure")))
    assert "lowered" not in delta["corrections"][0]


def test_an_update_judges_a_bounded_number_of_runs(manifest: Manifest, monkeypatch: pytest.MonkeyPatch) -> None:
    assert MAX_SUBJECT_RUNS > 1000
    monkeypatch.setattr(accounting, "MAX_SUBJECT_RUNS", 5)
    manifest.add(*(manifest.message(run(number)) for number in range(8)), checkpoint=True)
    for number in range(3):
        manifest.add(manifest.message(run(200 + number, ("z",))), checkpoint=True)
    delta = manifest.add(manifest.message(says(review="approved")))
    assert len(delta["trust_changes"]) == 5
    manifest.add(*(manifest.message(run(300 + n, (f"s{n}",))) for n in range(60)))
    delta = manifest.add(*(manifest.message(says(f"s{n}", review="approved")) for n in range(60)))
    assert len(delta["trust_changes"]) == 50
    assert {facts.review for facts in manifest.facts().values() if facts.subjects == ("a",)} == {"approved"}


@pytest.mark.parametrize("auth", ["", "hmac-sha256"])
@pytest.mark.parametrize("checkpoint", [True, False])
def test_runs_that_are_believed_less_displace_none_whose_trust_an_update_changes(
    manifest: Manifest, monkeypatch: pytest.MonkeyPatch, auth: str, checkpoint: bool
) -> None:
    """Runs of a fork with the same commit: the lowered trust of the trusted runs is recorded all the same."""
    monkeypatch.setattr(accounting, "MAX_SUBJECT_RUNS", 2)
    manifest.add(manifest.message(run(1, review="approved")), manifest.message(run(2)))
    manifest.add(manifest.message(says(review="approved")), checkpoint=checkpoint)
    assert manifest.trusted("github~1~1")
    assert manifest.trusted("github~2~1")
    forks = [run(number, auth=auth, fork="yes") for number in range(100, 160)]
    manifest.add(*map(manifest.message, forks), checkpoint=checkpoint)
    for number in range(3):
        manifest.add(manifest.message(run(200 + number, ("z",))), checkpoint=checkpoint)
    delta = manifest.add(manifest.message(says(review="", when=2)))
    assert [change["run_id"] for change in delta["trust_changes"]] == ["github~1~1", "github~2~1"]


PARENTS = ("1" * 40, "2" * 40)


def test_an_approval_counts_in_any_order_once_all_parents_are_merged(manifest: Manifest) -> None:
    merges = [says(merged_subject("p", "main", parent), review="merged") for parent in PARENTS]
    patchset = says(parents=" ".join(PARENTS))
    approval = says(review=PARTLY_APPROVED, target="main")
    tested = run(1, project="p", branch="main")
    manifest.add(*map(manifest.message, (tested, patchset, approval, merges[0])), checkpoint=True)
    assert manifest.facts()["github~1~1"].review == PARTLY_APPROVED
    assert not manifest.trusted("github~1~1")
    manifest.add(manifest.message(run(2, project="p", branch="other")))
    delta = manifest.add(manifest.message(merges[1]))
    assert [change["run_id"] for change in delta["trust_changes"]] == ["github~1~1"]
    assert {run_id: facts.review for run_id, facts in manifest.facts().items()} == {
        "github~1~1": "approved",
        "github~2~1": PARTLY_APPROVED,
    }
    assert not list(verify_manifest(manifest.log.store))


def test_the_runs_of_a_subject_are_read_once_for_all_of_its_updates(
    manifest: Manifest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Senders choose how many updates a subject has: its runs times its updates would be a quadratic cost."""
    manifest.add(*map(manifest.message, (run(1), says(parents="abc"))))
    manifest.add(*(manifest.message(says(owner=owner)) for owner in ("ann", "bob")))
    read = Subjects.runs
    subjects: list[Subject] = []
    monkeypatch.setattr(
        Subjects, "runs", lambda self, subject, *limits: (subjects.append(subject), read(self, subject, *limits))[1]
    )
    manifest.state.index.subjects.add_update(says(when=2, parents="abc"), "github 9")
    assert subjects == []
    assert changed_runs(manifest.log, manifest.state, 0) == {"github~1~1"}
    assert subjects == [("github", "a")]


facts_of_updates = st.sampled_from([
    {"review": "approved"}, {"review": "merged"}, {"review": "dismissed"}, {"fork": "yes"}, {"fork": "no"},
    {"change": "9"}, {"review": PARTLY_APPROVED, "target": "main"}, {"review": "merged", "target": "other"},
    {"parents": PARENTS[0]}, {"parents": " ".join(PARENTS)}, {"review": "vetoed"},
])  # fmt: skip
runs = st.builds(
    lambda number, subjects, auth, fork: run(number, tuple(subjects), auth, fork=fork, project="p", branch="main"),
    st.integers(0, 5), st.lists(st.sampled_from("abc"), max_size=2, unique=True),
    st.sampled_from(["", "hmac-sha256"]), st.sampled_from(["", "no"]),
)  # fmt: skip
updates = st.builds(
    lambda subject, auth, when, facts: says(subject, auth, when, **facts),
    st.sampled_from("abc"), st.sampled_from(["", "hmac-sha256"]), st.integers(0, 3), facts_of_updates,
) | st.builds(
    lambda parent, auth: says(merged_subject("p", "main", parent), auth, review="merged"),
    st.sampled_from(PARENTS), st.sampled_from(["", "hmac-sha256"]),
)  # fmt: skip


def expected(rows: Mapping[str, RunFacts], said: list[tuple[FactUpdate, str]]) -> dict[str, RunFacts]:
    """Facts by brute force: every update for every run."""
    of_subjects: dict[str, Any] = {}
    for update, key in said:
        of_subjects[update.subject] = merge_statements(of_subjects.get(update.subject, {}), statements_of(update, key))

    def look_up(subject: str) -> Mapping[str, Any]:
        return of_subjects.get(subject, {})

    return {run_id: join_facts(own, map(look_up, own.subjects), look_up) for run_id, own in rows.items()}


@settings(max_examples=tries(60))
@given(st.lists(st.one_of(runs, updates), min_size=1, max_size=12), st.randoms(use_true_random=False))
def test_any_order_any_batches_any_committers(
    tmp_path_factory: pytest.TempPathFactory, sent: list[RunFacts | FactUpdate], rng: random.Random
) -> None:
    manifest = Manifest(tmp_path_factory.mktemp("raw"))
    first: dict[str, RunFacts] = {}
    for one in sent:
        if isinstance(one, RunFacts):
            first.setdefault(one.run_id, one)
    messages = [manifest.message(one) for one in sent if isinstance(one, FactUpdate) or first[one.run_id] is one]
    said = [(update, message.event_key) for message in messages for update in message.updates]
    for _ in range(2):
        deliveries = messages + rng.choices(messages, k=3)
        rng.shuffle(deliveries)
        other = Manifest(tmp_path_factory.mktemp("raw"))
        while deliveries:
            size = rng.randint(1, 4)
            other.add(*deliveries[:size], checkpoint=rng.random() < 0.5)
            if rng.random() < 0.3:
                other.state = other.open()  # another committer
            del deliveries[:size]
        wanted = expected(first, said)
        assert other.facts() == wanted
        assert {run_id: other.trusted(run_id) for run_id in wanted} == {
            run_id: judge(facts).trusted for run_id, facts in wanted.items()
        }
        stored = {one.own.run_id: (one.own, one.trust) for one in latest_runs(other.log, other.state)}
        assert stored == {run_id: (first[run_id], judge(facts)) for run_id, facts in wanted.items()}
        audit = Audit(Verification())
        for version, delta in other.log.since(0):
            audit.add_delta(version, delta)
        audit.compare(other.state)
        assert audit.result.findings == []
        assert not list(verify_manifest(other.log.store))
        assert other.state.index.subjects.join_all(first) == {
            run_id: facts.replace(change=first[run_id].change) if not facts.subjects else facts
            for run_id, facts in wanted.items()
        }
