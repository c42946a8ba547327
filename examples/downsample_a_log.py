"""Parses a telemetry log and downsamples it, as data sets do.

    python examples/downsample_a_log.py LOG [--interval 10s] [--features '^(usr|1m)$'] [--statistic mean]

The log may be of dstat, dool or pcp-dstat, plain or gzip. Windows start at UTC midnight, as in pandas' ``resample``.
"""

from __future__ import annotations

import argparse

import ciml
from ciml.sklearn import Downsample


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("log")
    parser.add_argument("--interval", default="10s")
    parser.add_argument("--features", default="^(usr|1m)$", metavar="REGEX")
    parser.add_argument("--statistic", default="mean", choices=["mean", "min", "max", "std", "last"])
    options = parser.parse_args()

    telemetry = ciml.parse_log(options.log)
    downsample = Downsample(options.interval, options.features, sample_statistic=options.statistic, flatten=False).fit(
        [telemetry]
    )
    (windows,) = downsample.transform([telemetry])  # float32 [windows, features]

    print(f"{telemetry.num_rows} samples from {telemetry['time'][0]} on, {len(windows)} windows of {options.interval}")
    print("".join(f"{name:>16}" for name in downsample.features_))
    for window in windows:
        print("".join(f"{value:16,.2f}" for value in window))


if __name__ == "__main__":
    try:
        main()
    except ciml.CimlError as error:
        raise SystemExit(str(error)) from None
