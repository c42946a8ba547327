"""The constructors of estimators: names, defaults and present values of their parameters."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from functools import cache
from typing import Any

from ciml.errors import InvalidSettingError
from ciml.training.estimators.names import LIBRARIES, similar

#: Parameters of lightgbm that its constructor takes as further keywords. Others are left out on purpose: several of
#: them read or write files, or connect to other machines.
_LIGHTGBM = frozenset(
    {"bagging_fraction", "bagging_freq", "bagging_seed", "bin_construct_sample_cnt", "boost_from_average"}
    | {"cat_l2", "cat_smooth", "data_random_seed", "data_sample_strategy", "deterministic", "drop_rate", "drop_seed"}
    | {"extra_seed", "extra_trees", "feature_fraction", "feature_fraction_bynode", "feature_fraction_seed"}
    | {"force_col_wise", "force_row_wise", "is_unbalance", "lambda_l1", "lambda_l2", "linear_lambda", "linear_tree"}
    | {"max_bin", "max_cat_threshold", "max_cat_to_onehot", "max_delta_step", "max_drop", "metric"}
    | {"min_data_in_bin", "min_data_in_leaf", "min_gain_to_split", "min_sum_hessian_in_leaf", "monotone_constraints"}
    | {"neg_bagging_fraction", "num_class", "num_threads", "objective_seed", "other_rate", "path_smooth"}
    | {"pos_bagging_fraction", "scale_pos_weight", "seed", "sigmoid", "skip_drop", "top_rate", "uniform_drop"}
    | {"use_missing", "use_quantized_grad", "verbose", "verbosity", "xgboost_dart_mode", "zero_as_missing"}
)
#: Parameters of the libraries that an experiment may not set, with the reason.
_REJECTED = {
    "memory": "a cache stores pickles, which run code when they are read; leave it out",
    "pre_dispatch": "is an expression that joblib evaluates; leave it out",
}


@dataclass(frozen=True)
class Constructor:
    """The constructor of a class.

    Attributes:
      kind: the class.
      names: the parameters' names.
      defaults: the defaults of those that have one.
      more: whether it takes further keywords.
    """

    kind: type
    names: frozenset[str]
    defaults: dict[str, Any]
    more: bool

    def has(self, key: str) -> bool:
        """Return whether there is a parameter of this name."""
        return key in self.names | self._further or (self.more and self._library not in LIBRARIES)

    def check_name(self, key: str) -> None:
        """Raise `InvalidSettingError` if there is no parameter of this name."""
        if not self.has(key):
            hint = similar(key, self.names | self._further, "")
            raise InvalidSettingError(f"{self.kind.__name__} has no parameter of this name{hint}")

    @property
    def _library(self) -> str:
        return self.kind.__module__.partition(".")[0]

    @property
    def _further(self) -> frozenset[str]:
        return _LIGHTGBM if self._library == "lightgbm" else frozenset()

    def values_of(self, component: Any) -> dict[str, Any]:
        """Return the present parameters of an object: from ``get_params``, or attributes of the same names.

        Raises:
          InvalidSettingError: the object has neither.
        """
        if hasattr(component, "get_params"):
            values: dict[str, Any] = component.get_params(deep=False)
        else:
            attributes = {**vars(component).get("cvargs", {}), **vars(component)}  # cvargs: of repeated splits
            missing = sorted(self.names - attributes.keys())
            if missing or self.more:
                problem = f"no attribute {missing[0]}" if missing else "**keywords"
                raise InvalidSettingError(
                    f"a {self.kind.__name__} cannot be described: it has no get_params, and {problem}; let its "
                    "constructor store each parameter as an attribute of the same name"
                )
            values = {name: attributes[name] for name in self.names}
        for key in values:
            self.check_name(key)
        return values


@cache
def constructor_of(kind: Any) -> Constructor:
    """Return the constructor of a class.

    Keywords that it passes on, ``**kwargs``, are those of its base class, as in xgboost.

    Raises:
      InvalidSettingError: it takes positional arguments without names.
    """
    names: set[str] = set()
    defaults: dict[str, Any] = {}
    more = False
    for base in kind.__mro__:
        if "__init__" not in vars(base) or base is object:
            continue
        parameters = list(inspect.signature(vars(base)["__init__"]).parameters.values())[1:]
        if any(parameter.kind is inspect.Parameter.VAR_POSITIONAL for parameter in parameters):
            raise InvalidSettingError(f"the constructor of {kind.__name__} takes arguments without names; name each")
        more = any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in parameters)
        for parameter in parameters:
            if parameter.kind is not inspect.Parameter.VAR_KEYWORD and parameter.name not in names:
                names.add(parameter.name)
                if parameter.default is not inspect.Parameter.empty:
                    defaults[parameter.name] = parameter.default
        if not more:
            break
    return Constructor(kind, frozenset(names), defaults, more)


def check_parameter(kind: type, key: str, value: Any) -> None:
    """Raise `InvalidSettingError` if an experiment may not set a parameter of a library to a value."""
    if kind.__module__.partition(".")[0] not in LIBRARIES or key not in _REJECTED:
        return
    if value != constructor_of(kind).defaults.get(key):
        raise InvalidSettingError(_REJECTED[key])
