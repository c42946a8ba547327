"""Transformers for scikit-learn: logs of CI jobs to arrays."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, Self

from ciml.api.telemetry import is_table, parse_runs
from ciml.api.types import Run
from ciml.errors import CimlError, RejectedInput, UnusableRunError
from ciml.extras import require

require("sklearn", "train")

from sklearn.base import BaseEstimator, TransformerMixin  # noqa: E402  # after the error that names the extra
from sklearn.utils.validation import check_is_fitted  # noqa: E402

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa
    from numpy.typing import NDArray

__all__ = ["Downsample"]


class Downsample(TransformerMixin, BaseEstimator):
    """Prepare logs as ciml's data sets do, as a step of a scikit-learn pipeline: windows of equal length.

    ``fit`` chooses the columns that the pattern selects in most runs, and the number of windows; it learns nothing from
    the values. The values are not normalised. An unusable run raises an error that names it.

    Args:
      sample_interval: length of a window, such as ``10s`` or ``1min``; windows start at UTC midnight.
      features_regex: pattern of the columns' short names.
      max_windows: L, the number of windows to which a run is cut or padded with zeros. ``auto`` is the length that 99 %
        of the runs in ``fit`` do not exceed, at most 5,500 s.
      sample_statistic: statistic of a window's samples: ``mean``, ``min``, ``max``, ``std`` or ``last``.
      aggregation_functions: functions of a run's windows, such as ``("mean", "std")``, instead of the windows.
      count_first_sample: whether a recorder's first samples, averages since boot, are used.
      flatten: return [runs, features * L], feature by feature, as scikit-learn's estimators expect; otherwise
        [runs, L, features].
      zone: zone of logs that do not name one.

    Attributes:
      features_: names of the features.
      windows_: L.

    Example:
      >>> from pathlib import Path
      >>> from sklearn.ensemble import RandomForestClassifier
      >>> from sklearn.pipeline import make_pipeline
      >>> from ciml.sklearn import Downsample
      >>> logs = sorted(Path("logs").glob("*.csv"))
      >>> y = [number % 2 for number in range(len(logs))]
      >>> pipeline = make_pipeline(Downsample("5s", "usr|1m"), RandomForestClassifier(random_state=0))
      >>> pipeline.fit(logs, y).predict(logs[:2]).shape
      (2,)
    """

    def __init__(
        self,
        sample_interval: str = "10s",
        features_regex: str = ".",
        *,
        max_windows: int | str = "auto",
        sample_statistic: str = "mean",
        aggregation_functions: Sequence[str] = (),
        count_first_sample: bool = True,
        flatten: bool = True,
        zone: str | None = None,
    ) -> None:
        self.sample_interval = sample_interval
        self.features_regex = features_regex
        self.max_windows = max_windows
        self.sample_statistic = sample_statistic
        self.aggregation_functions = aggregation_functions
        self.count_first_sample = count_first_sample
        self.flatten = flatten
        self.zone = zone

    def fit(self, X: Iterable[Run], y: object = None) -> Self:  # noqa: N803
        """Choose columns and length.

        Args:
          X: runs: paths of logs, or tables as `ciml.parse_log` returns them.
          y: ignored.

        Raises:
          UnusableRunError: a run is unusable.
          CimlError: no column is selected.
        """
        from ciml.datasets.definition import DatasetDefinition, resolve
        from ciml.telemetry import telemetry_columns
        from ciml.transforms.examples.downsample import downsample

        definition = DatasetDefinition.from_json(
            {
                "name": "downsample",
                "sample_interval": self.sample_interval,
                "features_regex": self.features_regex,
                "max_windows": None if self.aggregation_functions else self.max_windows,
                "sample_statistic": self.sample_statistic,
                "aggregation_functions": tuple(self.aggregation_functions),
                "count_first_sample": self.count_first_sample,
            },
            "Downsample",
        )
        tables = self._tables(X)
        if not tables:
            raise CimlError("Downsample: fit needs at least one run")
        self._resolved = resolve(
            definition,
            [telemetry_columns(table.column_names) for table in tables],
            [],
            lambda draft: downsample(tables, draft).n_windows.tolist(),
        )
        self.features_ = self._resolved.features
        self.windows_ = self._resolved.windows
        return self

    def transform(self, X: Iterable[Run]) -> NDArray[np.float32]:  # noqa: N803
        """Downsample runs.

        Args:
          X: runs, as for `fit`.

        Returns:
          float32 [runs, features * L], feature by feature; or [runs, L, features] without ``flatten``. Windows after a
          run's last one contain zeros.

        Raises:
          UnusableRunError: a run is unusable, or lacks a column.
        """
        from ciml.transforms.examples.prepare import prepare_many

        check_is_fitted(self)
        runs = list(X)
        windows, _, rejected = prepare_many(self._tables(runs), self._resolved)
        if rejected:
            row, reason = rejected[0]
            raise _unusable(row, runs[row], reason)
        return windows.transpose(0, 2, 1).reshape(len(windows), -1) if self.flatten else windows

    def get_feature_names_out(self, input_features: object = None) -> NDArray[np.object_]:
        """Return the names of the columns of `transform`: ``usr[0]``, ``usr[1]``, …; without ``flatten`` the features.

        With aggregation functions they are ``usr[mean]``, ….
        """
        import numpy as np

        check_is_fitted(self)
        steps = self.aggregation_functions or range(self.windows_)
        names = [f"{name}[{step}]" for name in self.features_ for step in steps] if self.flatten else self.features_
        return np.array(names, object)

    def _tables(self, runs: Iterable[Run]) -> list[pa.Table]:
        inputs = list(runs)
        for run in inputs:
            if not isinstance(run, str | os.PathLike) and not is_table(run):
                raise CimlError(f"Downsample: expected paths or tables, got {type(run).__name__}")
        tables = []
        for row, table in enumerate(parse_runs(inputs, self.zone)):
            if isinstance(table, RejectedInput):
                raise _unusable(row, inputs[row], table)
            tables.append(table)
        return tables

    def __sklearn_is_fitted__(self) -> bool:
        return hasattr(self, "_resolved")

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.no_validation = True  # runs are paths or tables, no matrix
        tags.input_tags.two_d_array = False
        return tags


def _unusable(row: int, run: Run, reason: RejectedInput) -> UnusableRunError:
    name = f" ({os.fspath(run)})" if isinstance(run, str | os.PathLike) else ""
    return UnusableRunError(f"Downsample: run {row}{name}: {reason}", reason.reason)
