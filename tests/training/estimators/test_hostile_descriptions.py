"""A stored description cannot run code: what it may not name is neither imported nor called."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from ciml.errors import InvalidSettingError
from ciml.limits import MAX_DESCRIPTION_BYTES, MAX_JSON_DEPTH
from ciml.training.estimators.description import build
from tests.training.estimators.test_description import OWN, spec


def _nested(depth: int) -> dict[str, Any]:
    description = spec("GaussianNB")
    for _ in range(depth):
        description = spec("RFE", estimator=description)
    return description


def _function(name: str) -> dict[str, Any]:
    return spec("FunctionTransformer", func={"function": name})


def _layer(name: str, module: str = "keras.layers", **further: Any) -> dict[str, Any]:
    """A Keras model with one layer."""
    first = {"module": "keras.layers", "class_name": "InputLayer", "config": {"batch_shape": [None, 2]}}
    layer = {"module": module, "class_name": name, "config": {}, **further}
    config = {"name": "m", "layers": [first, layer]}
    return spec("keras:Model", config={"module": "keras", "class_name": "Sequential", "config": config})


_EVAL = {"module": "builtins", "class_name": "function", "config": "eval", "registered_name": "function"}
_PIPELINE = spec("Pipeline", steps=[["model", {"class": "SVC"}]])
_TEST = {"distribution": "ttest_ind", "arguments": [], "keywords": {}}

#: Descriptions that must not be built, with a part of the message.
HOSTILE: dict[str, tuple[Any, str]] = {
    "command": (spec("os:system", command="touch PATH"), "module os is not allowed"),
    "process": (spec("subprocess:Popen", args=["touch", "PATH"]), "module subprocess is not allowed"),
    "exported function": (spec("sklearn.pipeline:deepcopy"), "is not an estimator"),
    "private module": (spec("sklearn.utils._testing:check_call"), "is not an estimator"),
    "download": (spec("sklearn.datasets:fetch_file", url="http://localhost"), "is not an estimator"),
    "function of another module": (_function(f"{OWN}:system"), "has no class or function system"),
    "class of another module": (spec(f"{OWN}:BaseEstimator"), "is defined in sklearn.base"),
    "module in a module": (spec(f"{OWN}:np"), "has no class or function np"),
    "attribute of a class": (spec("sklearn.svm:SVC.__init__"), "is not a name of the form"),
    "builtin": (_function("builtins:eval"), "module builtins is not allowed"),
    "reader of numpy": (_function("numpy:load"), "is not an estimator or function"),
    "maker of functions": (_function("numpy:frompyfunc"), "is not an estimator or function"),
    "reader of joblib": (_function("joblib:load"), "module joblib is not allowed"),
    "bundled module": (spec("sklearn.externals._packaging:version"), "is not an estimator"),
    "class as function": (_function("sklearn.svm:SVC"), "is a class, not a function"),
    "loss": (spec("xgboost:XGBClassifier", objective={"function": "os:system"}), "module os is not allowed"),
    "callback": (
        spec("xgboost:XGBClassifier", callbacks=[spec("xgboost.callback:TrainingCheckPoint", directory="PATH")]),
        "is not an estimator",
    ),
    "file of lightgbm": (
        spec("lightgbm:LGBMClassifier", forcedsplits_filename="PATH"),
        "no parameter of this name",
    ),
    "network of lightgbm": (spec("lightgbm:LGBMClassifier", machines="localhost:1"), "no parameter of this name"),
    "cache of pickles": (spec("Pipeline", steps=[], memory="PATH"), "stores pickles"),
    "deep cache": (spec("GridSearchCV", estimator=_PIPELINE, estimator__memory="PATH"), "stores pickles"),
    "expression": (spec("GridSearchCV", estimator=_PIPELINE, pre_dispatch="9**9**9"), "joblib evaluates"),
    "depth": (_nested(MAX_JSON_DEPTH), "nest deeper than 32"),
    "size": (spec("SVC", kernel="x" * MAX_DESCRIPTION_BYTES), "at most 262,144"),
    "keys": ({"class": "SVC", "parameters": {1: 2}}, "keys of a description must be texts"),
    "NaN": (spec("SVC", C=float("nan")), "JSON has no NaN"),
    "object": (spec("SVC", C=Path("table.csv")), "PosixPath is not a JSON value"),
    "text": ("SVC", "expected an object with the keys class and parameters"),
    "further key": ({"class": "SVC", "state": {}}, "expected an object with the keys class and parameters"),
    "misspelled": (
        spec("SVC", kernle="rbf"),
        "parameters.kernle: SVC has no parameter of this name; did you mean kernel?",
    ),
    "private attribute": (spec("SVC", __class__="rbf"), "no part"),
    "array of objects": (spec("SVC", C={"array": ["x"], "dtype": "object"}), "not a valid form of array"),
    "distribution": (spec("SVC", C=_TEST), "is not a distribution of scipy.stats"),
    "layer with code": (_layer("Lambda", config={"function": {"class_name": "__lambda__"}}), "Lambda is not a layer"),
    "layer with a file": (_layer("StringLookup", config={"vocabulary": "PATH"}), "StringLookup is not a layer"),
    "layer with a model": (_layer("TFSMLayer", config={"filepath": "PATH"}), "TFSMLayer is not a layer"),
    "function of Keras": (_layer("get_file", "keras.utils"), "keras.utils.get_file is not a layer"),
    "other layer": (_layer("system", "os"), "os.system is not a layer"),
    "registered layer": (_layer("Dense", registered_name="own>Dense"), "own>Dense is not a layer"),
    "activation": (_layer("Dense", config={"units": 2, "activation": _EVAL}), "builtins.function is not a layer"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_a_hostile_description_is_rejected_and_nothing_runs(case: str, tmp_path: Path) -> None:
    description, message = HOSTILE[case]
    path = tmp_path / "ran"
    if case not in ("keys", "NaN", "object"):
        description = json.loads(json.dumps(description).replace("PATH", str(path)))
    imported = set(sys.modules)
    with pytest.raises(InvalidSettingError) as error:
        build(description, allowed=(OWN,))
    assert message in str(error.value)
    assert not path.exists()
    new_modules = set(sys.modules) - imported
    assert not {"sklearn.utils._testing", "sklearn.datasets", "sklearn.externals._packaging"} & new_modules
