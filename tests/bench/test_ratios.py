"""Speed as ratios in one run, on the sample runs; printed, and never asserted by the clock. Run by `make bench`."""

from __future__ import annotations

import gzip
import io
import json
import time
from collections.abc import Callable
from statistics import median

import pandas as pd
import pytest

from ciml.datasets.definition import DatasetDefinition, resolve
from ciml.events.cloudevents import decode_message, finished_event
from ciml.events.records import Message
from ciml.events.run_facts import facts_from_listing
from ciml.telemetry import telemetry_columns
from ciml.transforms.examples.downsample import downsample
from ciml.transforms.parse.logs import Log, parse_logs
from tests.bench.real_runs import FOLDER, listed_runs

pytestmark = pytest.mark.bench


@pytest.fixture(scope="module")
def builds() -> list[dict]:
    return listed_runs()


@pytest.fixture(scope="module")
def logs(builds: list[dict]) -> list[Log]:
    return [Log((FOLDER / build["log_path"]).read_bytes()) for build in builds]


def seconds(work: Callable[[], object], rounds: int = 5) -> float:
    """Median wall seconds of a call, after one that does not count."""
    times = []
    for number in range(rounds + 1):
        began = time.perf_counter()
        work()
        times.append(time.perf_counter() - began)
        if number == 0:
            times.clear()
    return median(times)


def tell(what: str, ours: float, other: float, opponent: str) -> None:
    print(f"\n{what}: {ours * 1e3:.1f} ms; {opponent}: {other * 1e3:.1f} ms; {other / ours:.1f} times as fast")


def test_parsing_batches_against_one_log_at_a_time(logs: list[Log]) -> None:
    tables = parse_logs(logs)
    singles = [parse_logs([log])[0] for log in logs]
    assert all(one.equals(other) for one, other in zip(tables, singles, strict=True))
    alone = seconds(lambda: [parse_logs([log]) for log in logs], 3)
    tell(f"parse {len(logs)} logs in one batch", seconds(lambda: parse_logs(logs)), alone, "log by log")


def test_logs_to_windows_against_pandas_run_by_run(logs: list[Log], builds: list[dict]) -> None:
    run_facts = [facts_from_listing(build, source="bench") for build in builds]
    definition = DatasetDefinition.from_json(
        {"name": "bench", "features_regex": "(usr|1min)", "class_label": "build_name", "sample_interval": "10s"}
    )
    resolved = resolve(definition, [telemetry_columns(table.column_names) for table in parse_logs(logs)], run_facts)

    def pandas() -> list[pd.DataFrame]:
        frames = []
        for log, mention in zip(logs, run_facts, strict=True):
            text = gzip.decompress(log.data).decode()
            head, form = text[: text.index('"time"')].count("\n"), "%b-%d" if text.startswith('"dool') else "%d-%m"
            frame = pd.read_csv(io.StringIO(text), skiprows=head, usecols=["time", "usr", "1m"])
            year = pd.Timestamp(mention.end_us, unit="us").year
            frame.index = pd.to_datetime(frame.pop("time") + f" {year}", format=f"{form} %H:%M:%S %Y")
            frames.append(frame.resample("10s").mean().dropna())
        return frames

    ours, theirs = downsample(parse_logs(logs), resolved), pandas()
    assert [int(count) for count in ours.n_windows] == [min(len(frame), resolved.windows) for frame in theirs]
    tell(
        f"{len(logs)} logs to windows of 10 s (usr, 1m)",
        seconds(lambda: downsample(parse_logs(logs), resolved)),
        seconds(pandas, 1),
        "pandas, run by run",
    )


def test_decoding_against_json_alone(builds: list[dict]) -> None:
    messages = []
    for number, build in enumerate(builds):
        mention = facts_from_listing(build, source="bench").replace(event="gate", log_url="https://logs.example.org/x")
        value, headers = finished_event(mention, event_id=build["build_uuid"], time_us=mention.end_us)
        messages.append(Message(number, value, tuple(headers)))
    assert decode_message(messages[0]).run_facts[0].build_uuid == builds[0]["build_uuid"]
    ours = seconds(lambda: [decode_message(one) for one in messages])
    bare = seconds(lambda: [json.loads(message.value or b"") for message in messages])
    tell(f"decode {len(messages)} events", ours, bare, "json alone")
