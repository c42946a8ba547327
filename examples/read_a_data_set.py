"""Reads a data set: its arrays for a model of your own, and a data frame to look at.

    python examples/read_a_data_set.py DATA NAME

The files are plain Parquet, but a folder may hold files that are not part of the data set, and runs that no model may
learn from. So `ciml` reads them: the data set's manifest names the files, the trust policy and exclusions the runs.
CIML_TRUST_POLICY=FILE names a policy; without it, the built-in one trusts proved work of Zuul, and loaded logs.
"""

from __future__ import annotations

import sys

import ciml


def main(data: str, name: str) -> None:
    dataset = ciml.open(data).dataset(name)
    print(dataset)
    for split in ("train", "test"):
        X, y = dataset.to_numpy(split)  # float32 [runs, L, features], int64 [runs]
        counts = ", ".join(f"{(y == label).sum()} {each}" for label, each in enumerate(dataset.classes))
        print(f"{split}: {len(X)} runs ({counts})")

    frame = dataset.to_pandas()
    if frame.empty:
        raise ciml.CimlError(f"the trust policy accepts no run of {name}; name another by CIML_TRUST_POLICY")
    run = frame.iloc[0]
    print(f"{run['run_id']}: {run['label_name']}, {run['n_windows']} of {dataset.windows} windows")
    for feature in dataset.features:
        print(f"  {feature:<16} {' '.join(f'{value:.6g}' for value in run[feature][: run['n_windows']][:5])}")


if __name__ == "__main__":
    if len(sys.argv) != 3:
        raise SystemExit(__doc__)
    try:
        main(*sys.argv[1:])
    except ciml.CimlError as error:
        raise SystemExit(str(error)) from None
