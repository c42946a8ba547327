"""Metrics of real services, scraped as Prometheus does it: equal to the producer's own list, also after a restart."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from urllib.parse import quote
from urllib.request import urlopen

import pytest
from click.testing import CliRunner
from prometheus_client import CollectorRegistry

from ciml.cli.main import cli
from ciml.metrics import serve_metrics
from ciml.pipelines.flink.jobs import list_flink_jobs
from tests.pipelines.ingest.ingesting import wait_for
from tests.pipelines.ingest.scenario import Scenario, send
from tests.scraping import Samples, scrape
from tests.services.supervising import ingest


def wanted(scenario: Scenario) -> dict[str, dict[tuple[str, ...], float]]:
    """The totals that the producer's list comes to. Its runs are of one source; what cannot be read names none."""
    events: Counter[tuple[str, ...]] = Counter()
    for message in scenario.sent:
        for run in message.runs:
            events[message.expected[0], "zuul" if run else "_unknown"] += 1
    reasons = {kind: Counter[tuple[str, ...]]() for kind in ("dead_letter", "ignored")}
    for (kind, reason), number in scenario.counts().items():
        if kind in reasons:
            reasons[kind][(reason,)] += number
    runs, untrusted = len(scenario.runs), len(scenario.untrusted)
    return {
        "ciml_events_total": dict(events),
        "ciml_dead_letter_total": dict(reasons["dead_letter"]),
        "ciml_dead_letters_open": dict(reasons["dead_letter"]),
        "ciml_ignored_total": dict(reasons["ignored"]),
        "ciml_deferred_logs": {},
        "ciml_runs_total": dict(+Counter({("gated", "true"): runs - untrusted, ("no rule", "false"): untrusted})),
    }


def totals(found: Samples) -> dict[str, dict[tuple[str, ...], float]]:
    names = ("events_total", "dead_letter_total", "dead_letters_open", "ignored_total", "deferred_logs", "runs_total")
    return {f"ciml_{name}": found.get(f"ciml_{name}", {}) for name in names}


@pytest.mark.engines
def test_in_the_foreground(kafka: str, topic: Callable[..., str], tmp_path: Path) -> None:
    scenario = send(kafka, topic(2, "events"), 2, tmp_path / "logs", runs=60)
    scenario.log_arrives()
    command = [
        sys.executable, "-m", "ciml", "ingest", "--metrics-port", "0", "--data-path", str(tmp_path / "data"),
        "--kafka", kafka, "--engine", "micro-batches", "--topic", scenario.topic, "--runs-topic", "", "--allow-root",
        str(scenario.logs), "--retry-after", "10ms",
    ]  # fmt: skip
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stderr is not None
        url = process.stderr.readline().removeprefix("metrics: ").strip()
        with contextlib.suppress(AssertionError):
            wait_for(lambda: totals(scrape(url)) == wanted(scenario))
        found = scrape(url)
    finally:
        process.terminate()
        _, reported = process.communicate(timeout=60)
    assert (process.returncode, "Traceback" in reported) == (0, False), reported
    assert totals(found) == wanted(scenario)
    sent = Counter(str(message.partition) for message in scenario.sent)
    assert found["ciml_lag_messages"] == {(partition, scenario.topic): 0 for partition in sent}
    assert found["ciml_covered_messages_total"] == {(part, scenario.topic): number for part, number in sent.items()}
    assert found["ciml_manifest_version"][("raw",)] >= 1
    # each log was asked for at least once, the missing ones twice, and each is in the last bucket
    asked = found["ciml_telemetry_fetch_seconds_count"][()]
    assert len(scenario.runs) <= asked <= 2 * len(scenario.sent)
    assert found["ciml_telemetry_fetch_seconds_bucket"][("+Inf",)] == asked
    assert found["ciml_commit_seconds_count"][("raw",)] == found["ciml_manifest_version"][("raw",)]
    assert not [labels for samples in found.values() for labels in samples if any("zuul~" in value for value in labels)]


@pytest.mark.engines
@pytest.mark.timeout(240)
def test_as_a_container_it_is_ended_and_started_again(kafka: str, topic: Callable[..., str], tmp_path: Path) -> None:
    """SIGTERM ends the watch, and the same command takes the worker over. Supervisors show what the worker measures."""
    scenario = send(kafka, topic(1, "events"), 1, tmp_path / "logs", runs=40)
    scenario.log_arrives()
    with ingest(tmp_path / "home", str(tmp_path / "data"), scenario, topic(1, "runs")) as one:
        command = [
            sys.executable, "-m", "ciml", "service", "run", "ingest", "--name", "one", "--home",
            str(one.home), "--data-path", one.data, "--kafka", kafka, "--topic", scenario.topic, "--runs-topic",
            one.runs_topic, "--allow-root", str(scenario.logs), "--retry-after", "500ms", "--engine", "micro-batches",
            "--metrics-port", "0", "--tied-to", str(os.getpid()),
        ]  # fmt: skip
        workers = []
        for is_first in (True, False):
            process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
            one.wait(lambda: one.files.status().get("supervisor") == {"pid": process.pid}, "no status")  # noqa: B023
            one.wait(lambda: totals(scrape(one.status()["metrics"])) == wanted(scenario), "the totals are others")
            if is_first:
                asked = scrape(one.status()["metrics"])["ciml_telemetry_fetch_seconds_count"][()]
                assert len(scenario.runs) <= asked <= 2 * len(scenario.sent)
                one.kill_worker()
            workers.append(one.pid("worker"))
            found = scrape(one.status()["metrics"])
            process.terminate()
            _, reported = process.communicate(timeout=60)
            assert process.returncode == 0, reported
            assert found["ciml_ingest_health"][("running",)] == sum(found["ciml_ingest_health"].values()) == 1
            assert found["ciml_ingest_resubmissions_total"] == {(): 1}  # also after a restart
        assert workers[0] == workers[1]


@pytest.mark.engines
@pytest.mark.timeout(180)
def test_on_flink_beam_counts_what_the_histograms_do(
    kafka: str, topic: Callable[..., str], tmp_path: Path, flink_jobs: str
) -> None:
    """Where the workers are not of a process that is scraped, Flink's own reporter has these."""
    scenario = send(kafka, topic(1, "events"), 1, tmp_path / "logs", runs=8)
    scenario.log_arrives()
    with ingest(tmp_path / "home", str(tmp_path / "data"), scenario, topic(1, "runs")) as one:
        done = one.start("--engine", f"flink:{flink_jobs}", "--metrics-port", "0")
        assert done.exception is None, done.exception
        one.wait(lambda: totals(scrape(one.status()["metrics"])) == wanted(scenario), "the totals are others")
        name, found = one.status()["job"]["name"], scrape(one.status()["metrics"])
        expected = {
            "ciml_telemetry_fetch_count": found["ciml_telemetry_fetch_seconds_count"][()],
            "ciml_commit_raw_count": found["ciml_commit_seconds_count"][("raw",)],
        }
        one.wait(lambda: expected.items() <= counters(flink_jobs, name).items(), f"Flink does not report {expected}")
        milliseconds = counters(flink_jobs, name)["ciml_telemetry_fetch_ms"]
        measured = found["ciml_telemetry_fetch_seconds_sum"][()] * 1000
        assert abs(milliseconds - measured) <= expected["ciml_telemetry_fetch_count"]  # each bundle is rounded once
        one.wait(lambda: scrape(one.status()["metrics"]).get("ciml_ingest_checkpoint_bytes", {}) != {}, "no checkpoint")


def counters(endpoint: str, job_name: str) -> Counter[str]:
    """ciml's counters in Flink's REST API, over all tasks of a job."""
    job = next(job for job in list_flink_jobs(endpoint) if job.name == job_name)
    found: Counter[str] = Counter()
    for vertex in _get(f"{job.base}/jobs/{job.id}")["vertices"]:
        metrics = f"{job.base}/jobs/{job.id}/vertices/{vertex['id']}/subtasks/metrics"
        names = [each["id"] for each in _get(metrics) if ".ciml_" in each["id"] and "backlog" not in each["id"]]
        for each in _get(f"{metrics}?get={quote(','.join(names))}&agg=sum") if names else ():
            found[each["id"].rpartition(".")[2]] += each["sum"]
    return found


def _get(url: str) -> dict:
    with urlopen(url, timeout=10) as answer:
        return json.load(answer)


def test_a_port_that_is_taken_is_one_line(tmp_path: Path) -> None:
    with serve_metrics(CollectorRegistry(), 0) as url:
        port = url.rpartition(":")[2].removesuffix("/metrics")
        words = ["ingest", "--data-path", str(tmp_path), "--kafka", "127.0.0.1:1", "--engine", "micro-batches"]
        done = CliRunner().invoke(cli, [*words, "--metrics-port", port])
    line = f"ciml: metrics: cannot listen on 127.0.0.1:{port}: Address already in use; choose another --metrics-port\n"
    assert (done.exit_code, done.stderr) == (3, line)
