"""The names of estimators, ``module:Name``, and what a description may import by them.

A description is stored data, so it must not be able to call arbitrary code. Of scikit-learn, xgboost and lightgbm it
names estimators and what estimators are made of; functions come from short lists. Everything else must lie in a module
that the caller allows.
"""

from __future__ import annotations

import importlib
import inspect
import re
import sys
from collections.abc import Collection, Iterable, Iterator
from difflib import get_close_matches
from typing import Any

from ciml.errors import InvalidSettingError, UnknownEstimatorError
from ciml.limits import MAX_ESTIMATOR_NAME

__all__ = ["find_class", "find_component", "import_allowed", "is_allowed", "is_open", "name_of", "similar"]

_NAME = re.compile(r"(?P<module>[A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*):(?P<name>[A-Za-z_]\w*)", re.ASCII)
_FORM = "; name a classifier of scikit-learn, or package.module:Name"
#: Libraries whose estimators need no permission.
LIBRARIES = ("sklearn", "xgboost", "lightgbm")
#: Modules of scikit-learn with estimators. Those used most come first: a bare name imports them in this order.
_MODULES = (
    *("linear_model", "ensemble", "svm", "naive_bayes", "neighbors", "tree", "preprocessing", "pipeline", "compose"),
    *("model_selection", "feature_selection", "decomposition", "impute", "neural_network", "discriminant_analysis"),
    *("calibration", "dummy", "gaussian_process", "gaussian_process.kernels", "semi_supervised", "multiclass"),
    *("multioutput", "kernel_approximation", "random_projection", "cluster", "covariance", "cross_decomposition"),
    *("feature_extraction", "feature_extraction.text", "isotonic", "kernel_ridge", "manifold", "mixture"),
)
#: Modules of scikit-learn that are complete only once a module of ``sklearn.experimental`` is imported.
_EXPERIMENTAL = {
    "sklearn.impute": "sklearn.experimental.enable_iterative_imputer",
    "sklearn.model_selection": "sklearn.experimental.enable_halving_search_cv",
}
#: Functions that an estimator may call: they compute from arrays, and have no other effect. ``ufunc`` stands for all
#: universal functions of a module.
_FUNCTIONS: dict[str, tuple[str, ...]] = {
    "numpy": ("ufunc", "mean", "median", "max", "min", "amax", "amin", "sum", "std", "var", "nan_to_num"),
    "scipy.special": ("ufunc",),
    "sklearn.feature_selection": (
        *("f_classif", "chi2", "mutual_info_classif", "f_regression", "r_regression", "mutual_info_regression"),
    ),
    "sklearn.metrics.pairwise": (
        *(
            "linear_kernel",
            "polynomial_kernel",
            "sigmoid_kernel",
            "rbf_kernel",
            "laplacian_kernel",
            "cosine_similarity",
        ),
        *("additive_chi2_kernel", "chi2_kernel", "euclidean_distances", "manhattan_distances", "cosine_distances"),
    ),
}


def import_allowed(name: str, allowed: Iterable[str] = ()) -> Any:
    """Import the class or function that a description names, if it may.

    Args:
      name: ``module:Name``.
      allowed: modules that may be imported, with the modules below them, besides scikit-learn, xgboost and lightgbm.

    Returns:
      A class of estimators or of what they are made of, or a function.

    Raises:
      InvalidSettingError: the name is not valid, not allowed, or not in the module. Nothing was imported unless the
        module is allowed.
    """
    module, attribute = _split(name)
    if is_open(name):
        return _of_library(name, module, attribute)
    if not is_allowed(module, allowed):
        raise InvalidSettingError(
            f"{name}: module {module} is not allowed; stored data names it, so allow it explicitly (allow_modules, "
            f"--allow-module {module})"
        )
    return _of_module(name, module, attribute)


def _split(name: str) -> tuple[str, str]:
    """Return module and name of ``module:Name``."""
    match = _NAME.fullmatch(name) if len(name) <= MAX_ESTIMATOR_NAME else None
    if match is None:
        raise InvalidSettingError(f"{name!r:.80} is not a name of the form package.module:Name")
    return match["module"], match["name"]


def is_open(name: str) -> bool:
    """Return whether a name is of a library whose estimators or functions need no permission."""
    module = name.partition(":")[0]
    return module.partition(".")[0] in LIBRARIES or module in _FUNCTIONS


def is_allowed(module: str, allowed: Iterable[str]) -> bool:
    """Return whether a module or one of its parent packages is allowed."""
    return any(module == parent or module.startswith(f"{parent}.") for parent in allowed)


def _of_library(name: str, module: str, own: str) -> Any:
    """Import a class or function of a library. Raises `InvalidSettingError` if it may not be named."""
    if own in _FUNCTIONS.get(module, ()) or "ufunc" in _FUNCTIONS.get(module, ()):
        function = getattr(importlib.import_module(module), own, None)
        if own in _FUNCTIONS[module] or type(function).__name__ == "ufunc":
            return function
    short = module.removeprefix("sklearn.")
    if module in LIBRARIES[1:] or (short != module and short in _MODULES):
        candidate = getattr(_library_module(module), own, None)
        if inspect.isclass(candidate) and _is_component(candidate):
            return candidate
    if own == "FrozenEstimator":
        raise InvalidSettingError(f"{name} holds a fitted estimator; give one that is not fitted")
    raise InvalidSettingError(f"{name} is not an estimator or function that a description may name{_hint(own, module)}")


def _library_module(module: str) -> Any:
    """Import a module of a library, with its experimental classes."""
    if module in _EXPERIMENTAL:
        importlib.import_module(_EXPERIMENTAL[module])
    return importlib.import_module(module)


def _hint(own: str, module: str) -> str:
    """Return what to name instead: a similar name of scikit-learn, or the functions of the module."""
    if functions := [name for name in _FUNCTIONS.get(module, ()) if name != "ufunc"]:
        return f"; of {module} choose from {', '.join(functions)}"
    return similar(own, _public_names())


def _import(name: str, module: str) -> Any:
    """Import a module. Raises `InvalidSettingError` if that fails, whatever the module raises."""
    try:
        return importlib.import_module(module)
    except Exception as error:  # noqa: BLE001 - a module of the user's may raise anything
        line = " ".join(str(error).split())
        raise InvalidSettingError(f"{name}: import of {module} failed: {type(error).__name__}: {line}") from None


def _is_component(kind: type) -> bool:
    """Return whether a class of a library is an estimator, a kernel, a splitter, or a selector of columns."""
    from sklearn.base import BaseEstimator
    from sklearn.compose import make_column_selector
    from sklearn.frozen import FrozenEstimator
    from sklearn.gaussian_process.kernels import Kernel
    from sklearn.model_selection import BaseCrossValidator, BaseShuffleSplit

    if kind.__module__.partition(".")[0] not in LIBRARIES or issubclass(kind, FrozenEstimator):
        return False
    kinds = (BaseEstimator, Kernel, BaseCrossValidator, BaseShuffleSplit, make_column_selector)
    splits = kind.__module__.startswith("sklearn.model_selection.") and hasattr(kind, "get_n_splits")
    return (issubclass(kind, kinds) or splits) and not inspect.isabstract(kind)


def _of_module(name: str, module: str, own: str) -> Any:
    """Import a class or function of a module of the user's.

    It must be defined in that module: what the module itself imports, such as ``os.system``, is not allowed by it.
    """
    candidate = getattr(_import(name, module), own, None)
    if not inspect.isclass(candidate) and not inspect.isfunction(candidate):
        raise InvalidSettingError(f"{name}: {module} has no class or function {own}{similar(own, _own_names(module))}")
    if candidate.__module__ != module:
        raise InvalidSettingError(f"{name}: {own} is defined in {candidate.__module__}; name it by that module")
    return candidate


def _own_names(module: str) -> list[str]:
    kinds = (inspect.isclass, inspect.isfunction)
    return [name for name, value in vars(sys.modules[module]).items() if any(kind(value) for kind in kinds)]


def name_of(value: Any) -> str:
    """Return the name of a class or function, ``module:Name``; the public module of a library that exports it.

    Raises:
      InvalidSettingError: it is a lambda, local, of ``__main__``, or not the value that its name leads to.
    """
    attribute = str(getattr(value, "__qualname__", ""))
    if type(value).__name__ == "ufunc":
        return _name_of_ufunc(value)
    kind = "class" if inspect.isclass(value) else "function"
    if attribute.endswith("<lambda>"):
        raise InvalidSettingError("a lambda cannot be described; define a function in a module")
    if "<locals>" in attribute or "." in attribute:
        raise InvalidSettingError(f"{kind} {attribute} is not at the top level of a module; move it there")
    module = value.__module__
    if module == "__main__":
        raise InvalidSettingError(f"{kind} {attribute} is defined in __main__; put it in a module that can be imported")
    if getattr(sys.modules.get(module), attribute, None) is not value:
        raise InvalidSettingError(
            f"{kind} {attribute} cannot be imported from {module}; define it at the module's top level"
        )
    return f"{_public_module(module, attribute, value)}:{attribute}"


def _name_of_ufunc(function: Any) -> str:
    own = str(function.__name__)
    for module in ("numpy", "scipy.special"):
        if getattr(sys.modules.get(module), own, None) is function:
            return f"{module}:{own}"
    raise InvalidSettingError(f"{own} is not a function of numpy or scipy.special; define one in a module")


def _public_module(module: str, own: str, value: Any) -> str:
    """Return the shortest module of a library that exports a class or function; of other packages, its own module."""
    parts = module.split(".")
    if parts[0] in (*LIBRARIES, "numpy", "scipy"):
        for count in range(1, len(parts)):
            parent = ".".join(parts[:count])
            if not parts[count - 1].startswith("_") and getattr(sys.modules.get(parent), own, None) is value:
                return parent
    return module


def find_class(name: str, others: Collection[str] = ()) -> str:
    """Return the full name of an estimator that an experiment names.

    Args:
      name: the bare name of a classifier of scikit-learn, such as ``LogisticRegression``, or ``module:Name``, which is
        returned as it is.
      others: further names, those of the built-in estimators, to suggest for a misspelled one.

    Raises:
      UnknownEstimatorError: there is no such classifier; with the most similar names.

    >>> find_class("LogisticRegression")
    'sklearn.linear_model:LogisticRegression'
    """
    if ":" in name:
        try:
            _split(name)
        except InvalidSettingError as error:
            raise UnknownEstimatorError(str(error)) from None
        return name
    module = _module_of(name)
    if module is None:
        names = [*others, *(public for public in _public_names() if _predicts(public))]
        form = f"{_FORM}; built in are {', '.join(others)}" if others else _FORM
        raise UnknownEstimatorError(f"unknown estimator {name!r:.80}{similar(name, names, form)}")
    if not _predicts(name):
        raise UnknownEstimatorError(f"{module}:{name} predicts no probabilities of classes; name a classifier")
    return f"{module}:{name}"


def find_component(name: str) -> str:
    """Return the full name of a part of an estimator: as `find_class`, but of any class of scikit-learn."""
    module = None if ":" in name else _module_of(name)
    return name if module is None else f"{module}:{name}"


def _module_of(name: str) -> str | None:
    """Return the module of scikit-learn that exports an estimator; None if there is none."""
    if not name.isidentifier() or name.startswith("_"):
        return None
    for short in _MODULES:
        module = _library_module(f"sklearn.{short}")
        if name in getattr(module, "__all__", ()) or (short.count(".") and hasattr(module, name)):
            candidate = getattr(module, name)
            if inspect.isclass(candidate) and _is_component(candidate):
                return name_of(candidate).partition(":")[0]
    return None


def _predicts(name: str) -> bool:
    """Return whether a class of scikit-learn is a classifier with probabilities or a decision function."""
    from sklearn.base import DensityMixin, OutlierMixin

    kind = import_allowed(f"{_module_of(name)}:{name}")
    if issubclass(kind, (DensityMixin, OutlierMixin)):
        return False
    return hasattr(kind, "fit") and (hasattr(kind, "predict_proba") or hasattr(kind, "decision_function"))


def _public_names() -> Iterator[str]:
    """Yield the names of scikit-learn's estimators and of their parts."""
    for short in _MODULES:
        module = _library_module(f"sklearn.{short}")
        for name in getattr(module, "__all__", ()):
            if inspect.isclass(candidate := getattr(module, name, None)) and _is_component(candidate):
                yield name


def similar(name: str, names: Iterable[str], otherwise: str = _FORM) -> str:
    """Return a question that names what is similar to a misspelled name, or ``otherwise``."""
    by_lower = {candidate.lower(): candidate for candidate in names}
    matches = [by_lower[match] for match in get_close_matches(name.lower(), by_lower, 3, 0.7)]
    if matches:
        return f"; did you mean {' or '.join(matches)}?"
    return otherwise
