"""The types of the arguments and the results of the public Python API.

Results of trainings and of cross-validations are figures with intervals, next to the base rate and the baselines of one
run statistic. Progress callbacks may have a former form (`present_progress`).
"""

from __future__ import annotations

import inspect
import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple, Protocol, TypedDict, TypeGuard

from ciml.progress import Progress, no_progress

if TYPE_CHECKING:
    from ciml.training.trainer import TrainResult

#: A local path, or an ``s3://bucket/prefix`` where a method accepts one.
Path = str | os.PathLike[str]
#: A moment: a datetime with a zone, an ISO 8601 text with a zone, or epoch seconds.
Moment = datetime | str | float


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


class Classifier(Protocol):
    """An estimator with scikit-learn's interface: also ``predict_proba`` or ``decision_function``. Or a Keras model."""

    def fit(self, X: Any, y: Any) -> Any:  # noqa: N803  # scikit-learn's name
        """Learn from X and y."""


#: A function of (L, F) and the number of classes that returns a Keras model of windows.
NetworkFunction = Callable[[tuple[int, int], int], Any]
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
    view: Literal["windows", "flat", "summary"] | None
    parameters: Mapping[str, Any]
    window: str | None
    half_life: str | None


class Figure(NamedTuple):
    """A figure with its 95 % interval.

    Attributes:
      value: None if it is undefined, for example if the runs have a single class.
      low: lower bound, or None.
      high: upper bound, or None.
    """

    value: float | None
    low: float | None = None
    high: float | None = None

    @classmethod
    def of(cls, stored: Mapping[str, Any]) -> Figure:
        """Return the figure of a stored result."""
        return cls(stored["value"], stored.get("low"), stored.get("high"))

    def __str__(self) -> str:
        from ciml.training.evaluation.text import figure_text

        return figure_text(*self)


@dataclass(frozen=True, repr=False)
class _Result:
    """What an experiment gives on a data set; ``_scores`` is the key of the figures of all held-out runs."""

    experiment: str
    dataset: str
    new: bool
    figures: Mapping[str, Any]

    _scores: ClassVar[str]

    @property
    def runs(self) -> int:
        """Number of runs, none of which the model that predicted it had seen."""
        return int(self.figures[self._scores]["runs"])

    @property
    def base_rate(self) -> Figure:
        """Accuracy of always predicting the most frequent class of the training runs."""
        return Figure.of(self.figures[self._scores]["base_rate"])


@dataclass(frozen=True, repr=False)
class TrainingResult(_Result):
    """The result of an experiment on a data set: its figures on the held-out test runs.

    ``print(result)`` prints it as ``ciml experiment train`` does.

    Attributes:
      experiment: name of the experiment, for `ciml.Data.compare`.
      dataset: name of the data set.
      new: whether this call trained; False if the result was stored before.
      figures: the stored result, described in docs/experiments.md.
    """

    _scores = "test"

    @property
    def accuracy(self) -> Figure:
        """Share of the test runs whose class is predicted correctly."""
        return Figure.of(self.figures["test"]["accuracy"])

    @property
    def f1(self) -> Figure:
        """Mean of the classes' F1 scores."""
        return Figure.of(self.figures["test"]["macro"]["f1"])

    @property
    def roc_auc(self) -> Figure:
        """Mean of the classes' areas under the ROC curve."""
        return Figure.of(self.figures["test"]["macro"]["roc_auc"])

    @property
    def baselines(self) -> dict[str, Figure]:
        """Accuracy of predicting from one run statistic, ``duration`` or ``memory``, by its name."""
        return {name: Figure.of(scores["accuracy"]) for name, scores in self.figures["baselines"].items()}

    def __repr__(self) -> str:
        from ciml.training.evaluation.text import result_lines

        return "\n".join(result_lines(self.figures))


@dataclass(frozen=True, repr=False)
class CrossValidation(_Result):
    """The result of a cross-validation: figures of runs that the model had not seen. The test runs are not read.

    ``print(result)`` prints the figures of each fold, their mean with its interval, and those of all folds together.
    It also prints the base rate and the baselines on the same folds.

    Attributes:
      experiment: name of the experiment.
      dataset: name of the data set.
      new: whether this call trained; False if the result was stored before.
      figures: the stored result. The key ``folds`` has the figures of each fold and its held-out groups, and ``mean``
        the means over the folds. ``pooled`` has the scores of all runs, ``baselines`` those of one run statistic.
    """

    _scores = "pooled"

    @property
    def accuracy(self) -> Figure:
        """Mean over the folds of the share of held-out runs whose class is predicted correctly."""
        return Figure.of(self.figures["mean"]["accuracy"])

    @property
    def f1(self) -> Figure:
        """Mean over the folds of the mean of the classes' F1 scores."""
        return Figure.of(self.figures["mean"]["f1"])

    @property
    def fold_accuracies(self) -> list[float]:
        """The accuracy of each fold."""
        return [fold["accuracy"]["value"] for fold in self.figures["folds"]]

    @property
    def pooled(self) -> dict[str, Figure]:
        """Figures of all runs together: ``accuracy``, ``brier``, and ``precision``, ``recall``, ``f1``, ``roc_auc`` and
        ``pr_auc``, which are means over the classes.
        """
        scores = self.figures["pooled"]
        figures = {"accuracy": scores["accuracy"], **scores["macro"], "brier": scores["brier"]}
        return {name: Figure.of(figure) for name, figure in figures.items()}

    @property
    def baselines(self) -> dict[str, Figure]:
        """Mean accuracy of predicting from one run statistic, ``duration`` or ``memory``, by its name."""
        return {name: Figure.of(scores["mean"]["accuracy"]) for name, scores in self.figures["baselines"].items()}

    def __repr__(self) -> str:
        from ciml.training.evaluation.text import fold_lines

        return f"{self.experiment} on {self.dataset}: " + "\n".join(fold_lines(self.figures))


class _Outcome(str):
    """An outcome whose former name still works."""

    __hash__ = str.__hash__

    def __eq__(self, other: object) -> bool:
        if other == "refused":
            warnings.warn("the outcome 'refused' is now 'rejected'", DeprecationWarning, stacklevel=2)
            other = "rejected"
        return str.__eq__(self, other) is True

    def __ne__(self, other: object) -> bool:
        return not self == other


@dataclass(frozen=True, repr=False)
class RefreshResult:
    """The result of a refresh: whether a new version was pushed, and why.

    ``print(result)`` prints it as ``ciml refresh`` does.

    Attributes:
      model: name of the model.
      outcome: ``pushed``; ``rejected`` by the gate or by the checks before a push; or ``nothing_new`` without new runs.
        It compares equal to ``refused``, the former name of ``rejected``, with a `DeprecationWarning`.
      version: number of the pushed version, or None.
      reasons: one line for each reason of the outcome.
      metrics: figures of the candidate; empty if nothing was trained.
    """

    model: str
    outcome: Literal["pushed", "rejected", "nothing_new"]
    version: int | None
    reasons: tuple[str, ...]
    metrics: Mapping[str, Any]
    _result: TrainResult

    @classmethod
    def of(cls, model: str, result: TrainResult) -> RefreshResult:
        """Return the public form of a trainer's result."""
        outcome: Any = _Outcome(result.outcome)
        return cls(model, outcome, result.version, result.reasons, result.metrics, result)

    def __repr__(self) -> str:
        return "\n".join(self._result.lines(self.model))


#: Forms of a progress callback before `ciml.Progress`: (done, total) and (step).
OldProgress = Callable[[int, int], None] | Callable[[str], None]


def present_progress(progress: Progress | OldProgress | None) -> Progress:
    """Return a progress callback in its present form."""
    if progress is None:
        return no_progress
    if _has_present_form(progress):
        return progress
    warnings.warn("a progress callback takes (step, done, total): see ciml.Progress", DeprecationWarning, stacklevel=3)
    former: Any = progress
    if len(inspect.signature(former).parameters) == 1:
        return lambda step, done, total: former(step)
    return lambda step, done, total: former(done, total)


def _has_present_form(progress: Progress | OldProgress) -> TypeGuard[Progress]:
    try:
        inspect.signature(progress).bind("", 0, 0)
    except ValueError:  # a builtin without a signature
        return True
    except TypeError:
        return False
    return True
