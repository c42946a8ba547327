"""From logs to windows, as a ratio to pandas in one run, on the sample runs. Run by `make bench`."""

from __future__ import annotations

import gzip
import io

import pandas as pd
import pytest

from ciml.datasets.definition import DatasetDefinition, resolve
from ciml.events.run_facts import facts_from_listing
from ciml.telemetry import telemetry_columns
from ciml.transforms.examples.downsample import downsample
from ciml.transforms.parse.logs import Log, parse_logs
from tests.bench.measuring import FOLDER, listed_runs, report_ratio, seconds

pytestmark = pytest.mark.bench


def test_logs_to_windows_against_pandas_run_by_run() -> None:
    logs = [Log((FOLDER / build["log_path"]).read_bytes()) for build in listed_runs()]
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
    pair = (seconds(lambda: downsample(parse_logs(logs), resolved), 3), seconds(pandas, 3))
    report_ratio("logs to windows of 10 s (usr, 1m)", [pair], "pandas", len(logs))
