"""Parses one telemetry log and downsamples it, with the functions that the pipelines use and nothing else.

    python examples/downsample_a_log.py LOG [--interval 10s] [--features '(usr|1min)'] [--statistic mean]

The log may be of dstat, dool or pcp-dstat, plain or gzip. Windows start at UTC midnight, as in pandas' ``resample``.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from ciml.datasets.definition import DatasetDefinition, resolve
from ciml.errors import RejectedInput
from ciml.events.records import RunFacts
from ciml.telemetry import telemetry_columns
from transforms.examples.downsample import downsample
from transforms.parse.logs import Log, parse_logs


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("log", type=Path)
    parser.add_argument("--interval", default="10s")
    parser.add_argument("--features", default="(usr|1min)", metavar="REGEX")
    parser.add_argument("--statistic", default="mean", choices=["mean", "min", "max", "std", "last"])
    options = parser.parse_args()

    table = parse_logs([Log(options.log.read_bytes())])[0]
    if isinstance(table, RejectedInput):
        raise SystemExit(f"{options.log}: {table}")
    definition = DatasetDefinition(
        name="one-log",
        sample_interval=options.interval,
        features_regex=options.features,
        sample_statistic=options.statistic,
        classes=("passed", "failed"),
    )
    run = RunFacts("example~log~1", "log", "example")
    resolved = resolve(definition, [telemetry_columns(table.column_names)], [run])
    windows = downsample([table], resolved)

    print(f"{table.num_rows} samples from {table['time'][0]} on, {windows.n_windows[0]} windows of {options.interval}")
    print("".join(f"{name:>16}" for name in resolved.features))
    for row in windows.values:
        print("".join(f"{value:16,.2f}" for value in row))


if __name__ == "__main__":
    main()
