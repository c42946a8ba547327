"""Fitted estimators as files: loaded exactly, and never with code that the caller did not allow."""

from __future__ import annotations

import hashlib
import json
import os
import warnings
import zipfile
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
import pytest
from sklearn.calibration import CalibratedClassifierCV
from sklearn.ensemble import BaggingClassifier, HistGradientBoostingClassifier, VotingClassifier
from sklearn.feature_selection import SelectKBest, mutual_info_classif
from sklearn.gaussian_process import GaussianProcessClassifier
from sklearn.model_selection import GridSearchCV, StratifiedKFold
from sklearn.neighbors import KNeighborsClassifier, RadiusNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, OneHotEncoder, StandardScaler
from sklearn.svm import SVC

from ciml.errors import CimlError, IntegrityError
from ciml.storage.json_files import read_json, write_json
from ciml.training.estimators import stored
from tests.durable import Disk
from tests.training.estimators import user_models
from tests.training.estimators.user_models import MeanThreshold, Plain, halved

OWN = user_models.__name__


def _xgboost() -> Any:
    from xgboost import XGBClassifier

    return XGBClassifier(n_estimators=3)


def _lightgbm() -> Any:
    from lightgbm import LGBMClassifier

    return LGBMClassifier(n_estimators=3, verbose=-1)


#: Estimators, each with the modules that must be allowed.
ESTIMATORS: list[tuple[Callable[[], Any], tuple[str, ...]]] = [
    (lambda: KNeighborsClassifier(3), ()),
    (lambda: make_pipeline(StandardScaler(), KNeighborsClassifier(5, weights="distance", algorithm="ball_tree")), ()),
    (lambda: make_pipeline(SelectKBest(mutual_info_classif, k=2), RadiusNeighborsClassifier(9.0)), ()),
    (lambda: GridSearchCV(KNeighborsClassifier(), {"n_neighbors": [1, 3]}, cv=StratifiedKFold(2)), ()),
    (lambda: BaggingClassifier(KNeighborsClassifier(), 2, random_state=0), ()),
    (lambda: CalibratedClassifierCV(SVC(), cv=2), ()),
    (lambda: GaussianProcessClassifier(), ()),
    (
        lambda: VotingClassifier([("a", HistGradientBoostingClassifier(max_iter=2)), ("b", _xgboost())], voting="soft"),
        (),
    ),
    (_lightgbm, ()),
    (lambda: MeanThreshold(1), (OWN,)),
    (lambda: Plain(), (OWN,)),
    (lambda: make_pipeline(FunctionTransformer(halved), KNeighborsClassifier()), (OWN,)),
]


@pytest.fixture(scope="module")
def rows() -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(4)
    X = generator.normal(size=(60, 4))
    return X, (X[:, 0] > 0).astype(np.int64)


@pytest.mark.parametrize("number", range(len(ESTIMATORS)))
def test_a_loaded_estimator_predicts_the_same(number: int, rows: tuple[Any, Any], tmp_path: Path) -> None:
    make, modules = ESTIMATORS[number]
    X, y = rows
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        estimator = make().fit(X, y)
        assert stored.save(estimator, tmp_path / "model") == modules
        loaded = stored.load(tmp_path / "model", modules)
        assert type(loaded) is type(estimator)
        np.testing.assert_array_equal(loaded.predict_proba(X), estimator.predict_proba(X))
    if modules:
        with pytest.raises(CimlError, match=rf"holds a {OWN}\.\w+: .* is not allowed; .* --allow-module {OWN}"):
            stored.load(tmp_path / "model", ("other", f"{OWN}.below"))


def test_what_cannot_be_stored_is_rejected_and_leaves_no_file(rows: tuple[Any, Any], tmp_path: Path) -> None:
    X, y = rows
    sparse = make_pipeline(OneHotEncoder(handle_unknown="ignore"), KNeighborsClassifier()).fit(X, y)
    locked = MeanThreshold().fit(X, y)
    locked.lock = Lock()
    bound = make_pipeline(FunctionTransformer(lambda values: values), KNeighborsClassifier()).fit(X, y)
    for estimator, message in (
        (sparse, "Pipeline cannot be stored: holds a sparse matrix; use dense arrays"),
        (locked, "MeanThreshold cannot be stored: "),
        (bound, "Pipeline cannot be stored: "),
    ):
        with pytest.raises(CimlError, match=message):
            stored.save(estimator, tmp_path / "model")
        assert not (tmp_path / "model").exists()


def test_the_description_is_written_after_the_estimator(rows: tuple[Any, Any], tmp_path: Path) -> None:
    """A folder without it has no estimator."""
    with Disk(tmp_path).recording() as disk:
        stored.save(KNeighborsClassifier().fit(*rows), tmp_path)
    named = [step.rpartition("/")[2].split()[-1] for step in disk.steps if step.startswith("rename")]
    assert named == [stored.FILE, stored.DESCRIPTION]


def test_a_file_that_is_too_large_is_not_read(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stored, "MAX_STORED_BYTES", (folder / stored.FILE).stat().st_size - 1)
    read = Path.read_bytes
    monkeypatch.setattr(
        Path, "read_bytes", lambda path: read(path) if path.name != stored.FILE else pytest.fail("it is read")
    )
    with pytest.raises(IntegrityError, match="MAX_STORED_BYTES"):
        stored.load(folder)


@pytest.mark.parametrize(
    ("limit", "size_of"),
    [("MAX_STORED_FILES", len), ("MAX_STORED_SCHEMA_BYTES", lambda files: files["schema.json"])],
)
def test_a_limit_of_the_archive_is_allowed_and_no_more(
    limit: str, size_of: Callable[[dict[str, int]], int], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with zipfile.ZipFile(folder / stored.FILE) as archive:
        size = size_of({entry.filename: entry.file_size for entry in archive.infolist()})
    monkeypatch.setattr(stored, limit, size)
    stored.load(folder)
    monkeypatch.setattr(stored, limit, size - 1)
    with pytest.raises(IntegrityError, match=limit):
        stored.load(folder)


def _replace(folder: Path, data: bytes) -> None:
    """Write a file as an attacker would who can write the folder: with its digest."""
    (folder / stored.FILE).write_bytes(data)
    description = read_json(folder / stored.DESCRIPTION)
    assert description is not None
    write_json(folder / stored.DESCRIPTION, {**description, "sha256": hashlib.sha256(data).hexdigest()})


def _rewritten(data: bytes, change: Callable[[dict[str, bytes]], None], compression: int = zipfile.ZIP_STORED) -> bytes:
    """Change the files of an archive."""
    with zipfile.ZipFile(BytesIO(data)) as archive:
        files = {name: archive.read(name) for name in archive.namelist()}
    change(files)
    buffer = BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def _typed(module: str, name: str) -> Callable[[dict[str, bytes]], None]:
    """Replace the class of the estimator in the schema."""

    def change(files: dict[str, bytes]) -> None:
        schema = json.loads(files["schema.json"])
        schema.update(__module__=module, __class__=name)
        files["schema.json"] = json.dumps(schema).encode()

    return change


def _reduced(module: str, name: str) -> Callable[[dict[str, bytes]], None]:
    """Replace the estimator by a call, in the form that pickle calls reduce."""

    def change(files: dict[str, bytes]) -> None:
        argument = {"__class__": "str", "__module__": "builtins", "__loader__": "JsonNode", "content": '"touch ran"'}
        arguments = {"__class__": "tuple", "__module__": "builtins", "__loader__": "TupleNode", "content": [argument]}
        schema = json.loads(files["schema.json"])
        call = {"__class__": name, "__module__": module, "__loader__": "PartialNode", "content": arguments}
        files["schema.json"] = json.dumps({**schema, **call}).encode()

    return change


def _array(content: bytes) -> Callable[[dict[str, bytes]], None]:
    def change(files: dict[str, bytes]) -> None:
        name = next(name for name in files if name.endswith(".npy"))
        files[name] = content

    return change


def _npy(array: np.ndarray, *, shape: tuple[int, ...] | None = None) -> bytes:
    buffer = BytesIO()
    header = {"descr": np.lib.format.dtype_to_descr(array.dtype), "fortran_order": False, "shape": shape or array.shape}
    np.lib.format.write_array_header_1_0(buffer, header)
    return buffer.getvalue() + array.tobytes()


#: Changes of the file, with the error.
HOSTILE: dict[str, tuple[Callable[[dict[str, bytes]], None], str]] = {
    "class of another module": (_typed("os", "system"), r"holds a os\.system: .*module os is not allowed"),
    "module that is not allowed": (_typed("evil", "Model"), r"holds a evil\.Model: .*module evil is not allowed"),
    "call": (_reduced("os", "system"), "module os is not allowed|is not a valid skops file"),
    "imported by an allowed module": (_typed(OWN, "system"), f"{OWN} has no class or function system"),
    "class of a library": (_typed("sklearn.utils._testing", "TempMemmap"), "TempMemmap, which is not trusted"),
    "name that begins as a trusted one": (_typed("sklearn.utils._bunch", "Bunches"), "Bunches, which is not trusted"),
    "function of a library": (_typed("sklearn.externals.joblib", "load"), "joblib.load, which is not trusted"),
    "huge array": (_array(_npy(np.zeros(2), shape=(10**15,))), "has not the values that its header names"),
    "pickled array": (_array(_npy(np.array([None]))), "has not the values that its header names"),
    "no array": (_array(b"not an array"), "is damaged"),
    "deep schema": (lambda files: files.update({"schema.json": b"[" * 100_000}), "is not a valid skops file"),
    "no schema": (lambda files: files.pop("schema.json") and None, "is not a valid skops file"),
    "further file": (lambda files: files.update({"../evil.py": b"x"}), "does not belong to an estimator"),
}


@pytest.fixture(scope="module")
def saved(rows: tuple[Any, Any], tmp_path_factory: pytest.TempPathFactory) -> bytes:
    folder = tmp_path_factory.mktemp("saved")
    stored.save(make_pipeline(StandardScaler(), KNeighborsClassifier()).fit(*rows), folder)
    return (folder / stored.FILE).read_bytes()


@pytest.fixture
def folder(rows: tuple[Any, Any], tmp_path: Path) -> Path:
    stored.save(KNeighborsClassifier().fit(*rows), tmp_path)
    return tmp_path


@pytest.mark.parametrize("case", HOSTILE)
def test_a_hostile_file_is_rejected_and_nothing_runs(
    case: str, saved: bytes, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    change, message = HOSTILE[case]
    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend(folder)
    (folder / "evil.py").write_text("from pathlib import Path\nPath('ran').touch()\nclass Model: pass\n")
    monkeypatch.setattr(os, "system", lambda command: Path("ran").touch())
    _replace(folder, _rewritten(saved, change))
    with pytest.raises(CimlError, match=message):
        stored.load(folder, (OWN,))
    assert not (folder / "ran").exists()


def test_a_compressed_file_is_rejected_before_it_is_unpacked(saved: bytes, folder: Path) -> None:
    small = _rewritten(saved, lambda files: files.update({"1.npy": b"\0" * 10_000_000}), zipfile.ZIP_DEFLATED)
    assert len(small) < 1_000_000
    claimed = bytearray(saved)  # that its last file is compressed, without a change of its size
    claimed[claimed.rindex(b"PK\x01\x02") + 10] = zipfile.ZIP_LZMA
    for data in (small, bytes(claimed)):
        _replace(folder, data)
        with pytest.raises(IntegrityError, match="is compressed, which ciml never does"):
            stored.load(folder)


def test_damage_is_an_integrity_error(folder: Path, rows: tuple[Any, Any]) -> None:
    data = bytearray((folder / stored.FILE).read_bytes())
    data[len(data) // 2] ^= 1
    (folder / stored.FILE).write_bytes(data)
    with pytest.raises(IntegrityError, match=r"estimator\.skops differs from its digest; train the experiment again"):
        stored.load(folder)
    _replace(folder, bytes(data[:1000]))
    with pytest.raises(IntegrityError, match="is damaged"):
        stored.load(folder)
    (folder / stored.FILE).unlink()
    with pytest.raises(IntegrityError, match=r"estimator\.skops is missing"):
        stored.load(folder)
    (folder / stored.DESCRIPTION).unlink()
    with pytest.raises(IntegrityError, match=r"estimator\.json is missing"):
        stored.load(folder)


def test_another_minor_version_of_scikit_learn_is_rejected(folder: Path) -> None:
    description = read_json(folder / stored.DESCRIPTION)
    assert description is not None
    write_json(folder / stored.DESCRIPTION, {**description, "versions": {"scikit-learn": "1.2.0"}})
    with pytest.raises(CimlError, match=r"was stored with scikit-learn 1\.2\.0, and .* is installed; train"):
        stored.load(folder)
