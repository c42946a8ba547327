"""The types of the arguments of the public Python API."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, Literal, Protocol, TypedDict

#: A local path, or an ``s3://bucket/prefix`` where a method accepts one.
Path = str | os.PathLike[str]
#: A moment: a datetime with a zone, an ISO 8601 text with a zone, or epoch seconds.
Moment = datetime | str | float
#: A value of a parameter of scikit-learn.
ParameterValue = bool | int | float | str | None


class ArrowTable(Protocol):
    """A table that other libraries can read: of pyarrow, polars, DuckDB, or pandas 2.2 and later."""

    def __arrow_c_stream__(self, requested_schema: object | None = None) -> object:
        """Export the table by the Arrow PyCapsule interface."""


class DataFrame(Protocol):
    """A DataFrame of pandas. Its index is ignored, unless it holds the times of telemetry and is named ``time``."""

    @property
    def columns(self) -> Sequence[Any]:
        """The names of the columns."""

    @property
    def index(self) -> Any:
        """The index."""

    def reset_index(self) -> DataFrame:
        """Return a DataFrame whose index is a column."""


#: A table as an argument.
Table = ArrowTable | DataFrame
#: A run as an argument: the path of a log, a run id, or telemetry in the form of `ciml.parse_log`.
Run = Path | Table


class DatasetKeys(TypedDict, total=False):
    """The keys of the definition of a data set, without its name. docs/datasets.md describes them."""

    version: int
    build_name: str | Sequence[str]
    sample_interval: str
    features_regex: str
    class_label: str
    classes: Sequence[str] | None
    class_map: Mapping[str, str]
    tdt_split: Sequence[int]
    salt: str
    sample_statistic: Literal["mean", "min", "max", "std", "last"]
    aggregation_functions: Sequence[
        Literal["mean", "std", "var", "min", "max", "median", "sum", "first", "last", "count"]
    ]
    max_windows: int | Literal["auto"] | None
    min_windows: int | None
    count_first_sample: bool
    span_runs: int
    baseline: Literal["duration", "memory", "none"] | None
    slicer: str | None
    raw_version: int | None
    context: Sequence[Literal["outcome", "profile", "neighbours"]] | None


class ExperimentKeys(TypedDict, total=False):
    """The hyper-parameters of an experiment. docs/training.md describes them."""

    hidden_layers: Sequence[int] | str
    activation: Literal["relu", "gelu", "tanh", "elu"]
    dropout: float
    l2: float
    batch_norm: bool
    kernel_size: int
    steps: int | None
    epochs: int
    batch_size: int
    optimizer: Literal["adam", "adamw", "adagrad", "ftrl", "rmsprop", "sgd"]
    learning_rate: float
    schedule: Literal["constant", "cosine"]
    early_stopping: int | None
    class_weights: Literal["none", "balanced"]
    calibration: Literal["auto", "temperature", "isotonic"] | None
    coverage: float
    seed: int
    parameters: Mapping[str, ParameterValue]
