"""The views of a run that an estimator can take, as arrays for training and as operations of a served model.

- *windows*: the windows themselves, float32 [n, L, F], NaN in the padding;
- *flat*: all windows of a column, then those of the next, float64 [n, F L + 1], zero in the padding of recorded runs;
- *summary*: statistics of each column over the run's own windows, float64 [n, 10 F + 1].

The last number of *flat* and *summary* is the number of windows. None is normalised.

*unrolled* is the view of the talk, which no experiment names: normalised windows, all of a column, then those of the
next, float32 [n, F L]. *recorded*, which no experiment names either, is the windows with their number, as `Windows`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final, Literal, NamedTuple, get_args

import numpy as np

from ciml.tensorflow import load_tensorflow
from ciml.training.estimators.summaries import summary, summary_names

View = Literal["windows", "flat", "summary"]
#: The views that an experiment can name.
VIEWS: tuple[View, ...] = get_args(View)
UNROLLED: Final = "unrolled"
RECORDED: Final = "recorded"
AnyView = View | Literal["unrolled", "recorded"]


class Windows(NamedTuple):
    """Runs, not normalised: inputs float32 [n, L, F] and n_windows int32 [n]."""

    inputs: Any
    n_windows: Any


def names_of(view: AnyView, features: Sequence[str], windows: int) -> list[str]:
    """Return the names of a view's columns.

    Args:
      view: one that an experiment can name.
      features: the names of F features.
      windows: L.

    Returns:
      For *windows* the features; for *flat* ``usr_0``, ``usr_1``, ..., ``n_windows``; for *summary*
      ``usr_mean``, ``usr_std``, ..., ``n_windows``.
    """
    if view == "windows":
        return list(features)
    if view == "flat":
        return [*(f"{feature}_{window}" for feature in features for window in range(windows)), "n_windows"]
    return summary_names(features)


def values_of(view: AnyView, inputs: np.ndarray, n_windows: np.ndarray) -> Any:
    """Compute a view of runs.

    A run's values do not depend on other runs, nor, except for *flat* and *unrolled*, on what its padding contains.

    Args:
      view: the view.
      inputs: float32 [n, L, F], normalised for *unrolled* alone.
      n_windows: int32 [n], from 1 to L.

    Returns:
      The values, as the module describes.

    Example:
      >>> values_of("flat", np.array([[[1.0, 5.0], [2.0, 6.0]]], np.float32), np.array([2], np.int32))
      array([[1., 2., 5., 6., 2.]])
    """
    with np.errstate(all="ignore"):
        return _VIEWS[view](inputs, n_windows, np)


def graph_of(view: AnyView, inputs: Any, n_windows: Any) -> Any:
    """Compute the same as `values_of` with TensorFlow operations.

    Args:
      view: the view.
      inputs: a tensor float32 [n, L, F], normalised for *unrolled* alone, with static L and F.
      n_windows: a tensor int32 [n], from 1 to L.

    Returns:
      A tensor of the same shape and dtype as the values of `values_of`, or `Windows` of tensors.
    """
    return _VIEWS[view](inputs, n_windows, load_tensorflow().experimental.numpy)


def _windows(inputs: Any, n_windows: Any, xp: Any) -> Any:
    return xp.where(_own(inputs, n_windows, xp), inputs, np.float32(np.nan))


def _flat(inputs: Any, n_windows: Any, xp: Any) -> Any:
    unrolled = xp.asarray(_unrolled(inputs, n_windows, xp), xp.float64)
    return xp.concatenate([unrolled, xp.asarray(n_windows, xp.float64)[:, None]], axis=1)


def _unrolled(inputs: Any, n_windows: Any, xp: Any) -> Any:
    _, windows, features = inputs.shape
    return xp.reshape(xp.transpose(inputs, (0, 2, 1)), (-1, features * windows))


def _recorded(inputs: Any, n_windows: Any, xp: Any) -> Windows:
    return Windows(inputs, n_windows)


def _own(inputs: Any, n_windows: Any, xp: Any) -> Any:
    """Return which windows are the run's own, bool [n, L, 1]."""
    return (xp.arange(inputs.shape[1]) < xp.asarray(n_windows, xp.int64)[:, None])[..., None]


_VIEWS: dict[AnyView, Callable[[Any, Any, Any], Any]] = {
    "windows": _windows,
    "flat": _flat,
    "summary": summary,
    UNROLLED: _unrolled,
    RECORDED: _recorded,
}
