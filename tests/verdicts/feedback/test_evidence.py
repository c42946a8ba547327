"""Whether a stored run can be compared with the passing runs of its job, so that something may be said of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from ciml.data_root import DataRoot
from ciml.errors import EngineError
from ciml.storage.local import LocalStore
from ciml.transforms.profiles import Profile, Profiles
from ciml.verdicts.feedback.config import Policy
from ciml.verdicts.feedback.evidence import compare_run, find_evidence, is_noted, output_link
from ciml.verdicts.feedback.judgement import Silence, decide_feedback
from ciml.verdicts.feedback.text import Style, marker_of, render
from ciml.verdicts.signatures.notes import Note, add_note
from ciml.verdicts.signatures.stored import read_signatures
from tests.verdicts.evidence import stored
from tests.verdicts.evidence.subjects import profiles, run_of
from tests.verdicts.evidence.test_output import DOWN, NOW_US, fail, passing_runs
from tests.verdicts.feedback import reviews


def known(runs: int = 20, **places: int) -> Profiles:
    """The profile of the job, of so many runs, by kind of machine."""
    profile = profiles(60).of("unit")
    named = {place.replace("_", "/"): count for place, count in places.items()}
    job = profile.replace(runs=runs, places=named) if named else profile.replace(runs=runs)
    return Profiles({"unit": job}, profiles(60).pooled)


def silence(
    folder: Path, model: Profiles | None, *, rows: int = 60, policy: Policy | None = None, pushed: Any = stored.RANGES,
    **facts: Any,
) -> Silence | None:  # fmt: skip
    data = DataRoot.open(folder / "data")
    stored.push(data, folder / "candidate", model, pushed)
    run = stored.FAILED.replace(**facts)
    path = stored.store_runs(data, [(run, run_of({}, rows).table)])[run.run_id]
    return compare_run(data, policy or Policy(), stored.prediction(run, path))


def test_a_run_is_compared_with_passing_runs_of_its_job_on_such_machines(tmp_path: Path) -> None:
    assert silence(tmp_path, known()) is None  # neither names its machine
    least = {"provider": "cloud", "region": "us", "flavour": "big"}
    assert silence(tmp_path / "least", known(5, cloud_us_big=5), rows=11, **least) is None  # 5 runs, and 10 s


@pytest.mark.parametrize(
    ("model", "facts", "policy", "detail"),
    [
        (known(), {"build_name": "other"}, {}, "0 passing runs of this job; 5 are needed"),
        (known(4), {}, {}, "0 passing runs of this job; 5 are needed"),  # the pooled profile is that of other jobs
        (known(20), {}, {"min_passing_runs": 21}, "20 passing runs of this job; 21 are needed"),
        (None, {}, {}, "0 passing runs of this job; 5 are needed"),
        (known(20, cloud_eu_big=16, cloud_us_big=4), {"provider": "cloud", "region": "us", "flavour": "big"}, {},
         "4 passing runs of this job on such machines; 5 are needed"),
        (known(20, cloud_eu_big=20), {"provider": "cloud", "region": "eu", "flavour": "small"}, {},
         "0 passing runs of this job on such machines; 5 are needed"),
        (known(20, cloud_eu_big=20), {}, {}, "0 passing runs of this job on such machines; 5 are needed"),
        (known(), {"provider": "cloud"}, {}, "0 passing runs of this job on such machines; 5 are needed"),
    ],
)  # fmt: skip
def test_a_run_that_cannot_be_compared_has_no_message(
    tmp_path: Path, model: Profiles | None, facts: dict[str, Any], policy: dict[str, Any], detail: str
) -> None:
    assert silence(tmp_path, model, policy=Policy(**policy), **facts) == Silence("not_comparable", detail)


def test_a_run_too_short_to_compare_has_no_message(tmp_path: Path) -> None:
    assert silence(tmp_path, known(), rows=10) == Silence("not_comparable", "9 s of telemetry; 10 s are needed")


def test_machines_are_not_compared_where_the_policy_says_so(tmp_path: Path) -> None:
    anywhere = Policy(same_place=False)
    assert silence(tmp_path, known(20, cloud_eu_big=20), policy=anywhere) is None


def test_profiles_of_earlier_versions_do_not_name_machines(tmp_path: Path) -> None:
    job = known().of("unit")
    earlier = Profile(job.job, job.runs, job.length_s, job.columns, job.short, job.tail_s)
    model = Profiles.from_json(Profiles({"unit": earlier}, profiles(60).pooled).to_json())
    found = silence(tmp_path, model)
    assert found is not None
    assert found.reason == "not_comparable"
    assert "same_place = false" in found.detail


def test_a_model_that_does_not_know_what_it_learned_says_nothing(tmp_path: Path) -> None:
    found = silence(tmp_path, known(), pushed=None)
    assert found is not None
    assert found.reason == "outside"


def test_a_run_or_model_that_cannot_be_read_has_no_message_and_a_store_that_is_away_delays_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, record = stored.made(tmp_path)
    assert compare_run(data, Policy(), record) is None
    gone = compare_run(data, Policy(), {**record, "path": "runs/job=unit/date=2026-01-01/none.parquet"})
    assert gone is not None
    assert gone.reason == "no_evidence"
    assert compare_run(data, Policy(min_passing_runs=0), {**record, "version": 9}) is None

    def away(*arguments: Any) -> Any:
        raise EngineError("the store does not answer")

    monkeypatch.setattr("ciml.verdicts.evidence.comparison_of", away)
    with pytest.raises(EngineError):
        compare_run(data, Policy(), record)


LOG = "https://logs.example.org/1/job-output.txt"


@pytest.mark.parametrize(
    ("url", "hosts", "auth", "link"),
    [
        (LOG, ("logs.example.org",), "hmac", LOG),
        (f"{LOG}#L812", ("*.example.org",), "hmac", f"{LOG}#L812"),
        (LOG, (), "hmac", ""),
        (LOG, ("example.org",), "hmac", ""),
        (LOG, ("*",), "", ""),  # anybody may have sent the event
        ("file:///srv/out", ("*",), "hmac", ""),
        ("https://logs.example.org@evil.example/x", ("logs.example.org",), "hmac", ""),
        ("https://evil.example/logs.example.org", ("logs.example.org",), "hmac", ""),
        (f"{LOG}) [x](https://evil.example", ("*",), "hmac", ""),
        (f"{LOG}?token=x", ("*",), "hmac", ""),
        ("https://[x", ("*",), "hmac", ""),
        (f"{LOG}\n/close", ("*",), "hmac", ""),
        ("javascript:alert(1)", ("*",), "hmac", ""),
        ("", ("*",), "hmac", ""),
    ],
)
def test_a_message_links_to_hosts_of_the_policy_alone(url: str, hosts: tuple[str, ...], auth: str, link: str) -> None:
    judged = decide_feedback(reviews.prediction(auth=auth), reviews.feedback(), (), int(reviews.NOW_S * 1e6)).item
    assert judged is not None
    assert output_link(url, judged, Policy(link_hosts=hosts)) == link


def test_a_message_on_a_stored_run_quotes_links_and_names(tmp_path: Path) -> None:
    data = DataRoot.open(tmp_path / "data")
    raw = passing_runs(data)
    for number in (10, 11):
        fail(raw, number, f"##[group]Run make setup\n##[endgroup]\n{DOWN}", project="org/project")
    page = "https://git.example.org/p/-/jobs/7"
    run = stored.FAILED.replace(
        adapter="gitlab",
        url=page,
        auth="token",
        project="org/project",
        change="12",
        patchset="3",
        end_us=NOW_US,
    )
    raw.add([(run, stored.STARVED)], outputs={run.run_id: f"##[group]Run make setup\n##[endgroup]\n{DOWN}".encode()})
    stored.push(data, tmp_path / "model", profiles(60))
    (path,) = [path for path in data.raw.list() if path.startswith("runs/") and run.run_id in path]
    judged = decide_feedback(stored.prediction(run, path), reviews.feedback(), (), NOW_US).item
    assert judged is not None
    finding = find_evidence(data, judged, Policy(link_hosts=("git.example.org",)))
    style = Style("gitlab", 4000, True, Policy())
    body = render([finding], marker_of("review", "org/project", "12"), judged.ref, style).body
    signature = finding.observations[1].partition("(signature ")[2][:6]
    assert body.split("\n")[4:9] == [
        "- “error: could not reach the mirror of packages” is new in this job (line 4 of its output, step “Run make "
        "setup”).",
        f"- 3 runs of 3 changes failed like this since 2026-11-18 (signature {signature}…); 3 changes within 6 hours "
        "indicate the machine.",
        "- It was ended by SIGKILL (exit status -9) after 59 s; passing runs take 54 to 64 s.",
        "- From second 20, steal was 41 %; passing runs have 0 %.",
        f"- [Its output]({page}#L4)",
    ]


def test_a_message_reads_the_new_deltas_and_its_run_and_not_the_whole_manifest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = DataRoot.open(tmp_path / "data")
    raw = passing_runs(data)
    for number in range(10, 40):
        fail(raw, number, DOWN)
    stored.push(data, tmp_path / "model", profiles(60))
    run = stored.FAILED.replace(labels={}, change="12", patchset="3", project="p", end_us=NOW_US)
    raw.add([(run, stored.STARVED)], outputs={run.run_id: DOWN.encode()})
    (path,) = [path for path in data.raw.list() if path.startswith("runs/") and run.run_id in path]
    record = stored.prediction(run, path)
    reads: list[str] = []
    read = LocalStore.read
    monkeypatch.setattr(LocalStore, "read", lambda store, path: reads.append(path) or read(store, path))

    def send() -> int:
        reads.clear()
        assert compare_run(data, Policy(), record) is None
        judged = decide_feedback(record, reviews.feedback(), (), NOW_US).item
        assert judged is not None
        assert len(find_evidence(data, judged, Policy()).observations) == 3
        return sum("_manifest/" in path for path in reads)

    assert send() <= 3 * 34  # by two followers of the process, and the registry
    assert send() <= 10
    fail(raw, 40, DOWN)
    assert send() <= 14


def test_a_run_is_noted_whose_failure_an_operator_has_a_note_on(tmp_path: Path) -> None:
    data = DataRoot.open(tmp_path / "data")
    raw = passing_runs(data)
    down = fail(raw, 10, DOWN).run_id
    other = fail(raw, 11, "AssertionError: 1 != 2").run_id
    assert not is_noted(data, down)
    signature = read_signatures(data).of_run(down)
    assert signature is not None
    add_note(data.failures, Note(signature.id, "ada", text="mirror down, recheck after 14:00"))
    assert [is_noted(data, run_id) for run_id in (down, other, "zuul~unknown~1")] == [True, False, False]
