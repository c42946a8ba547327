"""Speed as ratios in one run, on the sample runs; printed, and never asserted by the clock. Run by `make bench`."""

from __future__ import annotations

import gzip
import io
import json
from collections.abc import Callable
from functools import partial

import pandas as pd
import pytest

from ciml.datasets.definition import DatasetDefinition, resolve
from ciml.events.cloudevents import decode_message, finished_event
from ciml.events.records import Message
from ciml.events.run_facts import facts_from_listing
from ciml.telemetry import telemetry_columns
from ciml.transforms.examples.downsample import downsample
from ciml.transforms.parse.logs import Log, parse_logs
from tests.bench.measuring import FOLDER, listed_runs, report_ratio, seconds

pytestmark = pytest.mark.bench


@pytest.fixture(scope="module")
def logs() -> list[Log]:
    return [Log((FOLDER / build["log_path"]).read_bytes()) for build in listed_runs()]


def compare(name: str, ours: Callable[[], object], theirs: Callable[[], object], opponent: str) -> None:
    ours(), theirs()
    report_ratio(name, [(seconds(ours, 3), seconds(theirs, 3))], opponent, len(listed_runs()))


def test_parsing_batches_against_one_log_at_a_time(logs: list[Log]) -> None:
    singles = [parse_logs([log])[0] for log in logs]
    assert all(one.equals(other) for one, other in zip(parse_logs(logs), singles, strict=True))
    compare("parse logs in one batch", partial(parse_logs, logs), lambda: [parse_logs([log]) for log in logs], "each")


def test_logs_to_windows_against_pandas_run_by_run(logs: list[Log]) -> None:
    run_facts = [facts_from_listing(build, source="bench") for build in listed_runs()]
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
    compare("logs to windows of 10 s (usr, 1m)", lambda: downsample(parse_logs(logs), resolved), pandas, "pandas")


def test_decoding_against_json_alone() -> None:
    builds, messages = listed_runs(), []
    for number, build in enumerate(builds):
        mention = facts_from_listing(build, source="bench").replace(event="gate", log_url="https://logs.example.org/x")
        value, headers = finished_event(mention, event_id=build["build_uuid"], time_us=mention.end_us)
        messages.append(Message(number, value, tuple(headers)))
    assert decode_message(messages[0]).run_facts[0].build_uuid == builds[0]["build_uuid"]
    loads = [message.value or b"" for message in messages]
    compare("decode events", lambda: [*map(decode_message, messages)], lambda: [*map(json.loads, loads)], "json alone")
