"""The documented adapter of another package: it is built, found by its entry point, and reads hand-made webhooks."""

from __future__ import annotations

import importlib
import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ciml.events.records import RunFacts
from ciml.integrations.adapter import Delivery
from ciml.integrations.registry import adapters, find_adapter
from tests.integrations.deliveries import event_of
from tests.integrations.hostile import VALUES, changed, encoded, outcome, paths
from tests.integrations.reading import runs_of

PACKAGE = Path(__file__).parents[2] / "examples" / "buildkite_adapter"
#: What pip runs first; it needs no index.
BUILD = "import setuptools.build_meta as backend, sys; print(backend.prepare_metadata_for_build_wheel(sys.argv[1]))"


@pytest.fixture(scope="module", autouse=True)
def installed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Put the package on the path with the metadata that its build makes, as an installation does."""
    site = tmp_path_factory.mktemp("site")
    source = shutil.copytree(PACKAGE, site / "source")
    subprocess.run([sys.executable, "-c", BUILD, str(site)], cwd=source, check=True, capture_output=True, timeout=60)
    shutil.copy(source / "ciml_buildkite.py", site)
    sys.path.insert(0, str(site))
    importlib.invalidate_caches()
    adapters.cache_clear()
    yield
    sys.path.remove(str(site))
    sys.modules.pop("ciml_buildkite", None)
    adapters.cache_clear()


def webhook(event: str = "job.finished", build: dict[str, Any] | None = None, **job: Any) -> Delivery:
    body = {
        "event": event,
        "job": {
            "id": "0191-a", "type": "script", "name": ":go: unit", "step_key": "unit", "state": "failed",
            "web_url": "https://buildkite.com/acme/app/builds/7#0191-a", "exit_status": 1, "retried": False,
            "started_at": "2026-11-24 12:00:00 UTC", "finished_at": "2026-11-24 12:01:00 UTC", **job,
        },
        "build": {
            "id": "b-7", "number": 7, "branch": "main", "commit": "9f2c1b", "source": "webhook", "pull_request": None,
            "meta_data": {"ciml-log-0191-a": "s3://logs/0191-a.csv"}, **(build or {}),
        },
        "pipeline": {"slug": "app", "repository": "https://github.com/acme/app"},
        "sender": {"name": "Ada"},
    }  # fmt: skip
    return Delivery(json.dumps(body).encode(), {"x-buildkite-event": event})


def run(delivery: Delivery) -> RunFacts:
    (found,) = runs_of("buildkite", delivery).values()
    return found


def test_the_entry_point_registers_an_adapter_of_at_most_fifty_lines() -> None:
    adapter = find_adapter("buildkite")
    assert (adapter.name, adapter.signature, adapter.read.__module__) == ("buildkite", "buildkite", "ciml_buildkite")
    assert "zuul" in adapters()
    assert len((PACKAGE / "ciml_buildkite.py").read_text().splitlines()) <= 50


def test_every_fact_of_a_job() -> None:
    assert run(webhook()).to_json() == {
        "run_id": "ci~0191-a~1", "build_uuid": "0191-a", "build_name": "unit", "phase": "finished",
        "adapter": "buildkite",
        "outcome": "failure", "result": "failed", "source": "ci", "event": "webhook", "project": "app",
        "branch": "main", "change": "9f2c1b", "patchset": "9f2c1b", "log_url": "s3://logs/0191-a.csv",
        "start_us": 1795521600000000, "end_us": 1795521660000000, "auth": "token", "attempt_of": "b-7/unit",
        "url": "https://buildkite.com/acme/app/builds/7#0191-a",
    }  # fmt: skip


def test_states_repeats_and_other_webhooks() -> None:
    outcomes = {"passed": "success", "timed_out": "timeout", "canceled": "cancellation", "skipped": "skip"}
    assert {state: run(webhook(state=state)).outcome for state in outcomes} == outcomes
    pull_request = {"pull_request": {"id": "42", "base": "main"}}
    found = run(webhook("job.started", pull_request, state="running", finished_at=None))
    assert (found.phase, found.outcome, found.end_us, found.change) == ("started", None, None, "42")
    for delivery in (webhook("build.finished"), webhook("ping")):
        assert event_of("buildkite", delivery).ignored == "only jobs are runs"
    assert event_of("buildkite", webhook(type="waiter")).ignored == "a step without a command runs nothing"
    keys = {event_of("buildkite", webhook()._replace(id=delivery_id)).key for delivery_id in ("r1", "r2")}
    assert keys == {"ci+token job.finished/0191-a"}


def test_it_is_as_robust_as_ciml_s_own() -> None:
    body = json.loads(webhook().body)
    found = {
        outcome("buildkite", encoded(webhook(), changed(body, path, new))) for path in paths(body) for new in VALUES
    }
    assert {"run", "ignored", "rejected", "bad_field"} <= found
