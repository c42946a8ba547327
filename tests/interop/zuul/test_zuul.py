"""A change of a real Gerrit, tested by a real Zuul, becomes runs with the right facts, logs and trust."""

from __future__ import annotations

import time
from collections import Counter
from pathlib import Path

import pytest
import yaml

from ciml.runs.latest_runs import StoredRun
from tests.interop.zuul import gerrit
from tests.interop.zuul.conftest import Operator, wait_until
from tests.interop.zuul.loop import reported

HERE = Path(__file__).parent

pytestmark = [pytest.mark.interop, pytest.mark.engines, pytest.mark.timeout(3600)]


def by_pipeline_and_job(runs: list[StoredRun]) -> Counter[tuple[str, str, str]]:
    return Counter((run.facts.pipeline, run.facts.build_name, run.outcome) for run in runs)


def stored(operator: Operator, wanted: Counter[tuple[str, str, str]]) -> list[StoredRun]:
    """Ingest until these runs are stored, by pipeline, job and outcome. MQTT follows Zuul's own report."""
    found: list[StoredRun] = []

    def are_stored() -> bool:
        found[:] = operator.ingest()[0]
        return by_pipeline_and_job(found) >= wanted

    wait_until(are_stored, f"{wanted}", 120)
    return found


CHECKED = Counter({
    ("check", "measured", "success"): 1,
    ("check", "fails", "failure"): 1,
    ("check", "too-long", "timeout"): 1,
    ("check", "retried", "error"): 2,
})  # fmt: skip
MERGED = Counter({("gate", "measured", "success"): 1, ("post", "measured", "success"): 1})


def test_a_change_from_check_to_merge(operator: Operator) -> None:
    change = gerrit.propose({"README": f"demo {time.time()}\n"})
    wait_until(lambda: reported(change), f"check of change {change}")
    runs = stored(operator, CHECKED)
    assert by_pipeline_and_job(runs) == CHECKED
    for run in runs:
        facts = run.facts
        assert (facts.source, facts.project, facts.branch) == ("zuul", "demo", "master")
        assert (facts.change, facts.patchset, facts.owner, facts.auth) == (change, "1", "developer", "mqtt-user")
        assert (run.trust.trusted, run.trust.rule) == (False, "no rule")  # nobody has read the change
        assert run.file.rows >= 3, facts.run_id  # telemetry of dool or ciml record
    attempts = [run.facts.attempt_of for run in runs if run.facts.build_name == "retried"]
    assert len(set(attempts)) == 1
    assert attempts[0].endswith("/retried")
    assert len({run.facts.attempt_of for run in runs}) == 4
    _, state = operator.ingest()
    assert state.counts["ignored", "skipped"] == 1  # after-fails
    assert list(state.index.dead_letters()) == []
    assert not state.deferred

    gerrit.approve(change)
    wait_until(lambda: gerrit.status(change) == "MERGED", f"merge of change {change}")
    wait_until(lambda: by_pipeline_and_job(operator.ingest()[0])["post", "measured", "success"] == 1, "post")
    runs = stored(operator, CHECKED + MERGED)
    trust = {(run.facts.pipeline, run.facts.build_name): run.trust for run in runs}
    assert trust["gate", "measured"].rule == "gated"
    assert trust["post", "measured"].rule == "merged"
    checked = [run for run in runs if run.facts.pipeline == "check"]
    assert {run.facts.review for run in checked} == {"merged"}
    assert {(run.trust.trusted, run.trust.rule) for run in checked} == {(True, "reviewed")}


def test_the_pipelines_have_the_reporters_that_ciml_connect_prints(operator: Operator) -> None:
    said = operator.ciml(
        "connect", "zuul", "--broker", "mqtts://127.0.0.1:18883", "--logs", "http://127.0.0.1:19001", "--name", "other"
    )
    text = said.partition("the pipelines")[2].partition("\n")[2].partition("\n---")[0]
    printed = {one["pipeline"]["name"]: one["pipeline"] for one in yaml.safe_load(text)}
    used = yaml.safe_load((HERE / "zuul-config/zuul.yaml").read_text())
    pipelines = {one["pipeline"]["name"]: one["pipeline"] for one in used if "pipeline" in one}
    assert printed.keys() == pipelines.keys()
    for name, pipeline in printed.items():
        for action in ("success", "failure", "dequeue"):
            assert pipelines[name][action]["mqtt"] == pipeline[action]["mqtt"]
