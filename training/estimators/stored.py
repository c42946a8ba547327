"""Fitted estimators as files, without pickles: for those that have no conversion to TensorFlow.

The file is skops's: a zip archive with ``schema.json``, which names every type in it, and one ``.npy`` file per array.
A type is loaded only if it is trusted: scikit-learn's estimators and what they are made of, xgboost, lightgbm, and the
modules that the caller allows. Trusted types run no code of the file's. A crafted array can still crash the process, so
a model's files need a trusted place, whatever their format.
"""

from __future__ import annotations

import hashlib
import re
import zipfile
from collections.abc import Iterable, Mapping
from io import BytesIO
from math import prod
from pathlib import Path
from typing import Any

from ciml.errors import CimlError, IntegrityError, InvalidSettingError
from ciml.limits import MAX_STORED_BYTES, MAX_STORED_FILES, MAX_STORED_SCHEMA_BYTES
from ciml.storage.json_files import read_json, write_json
from ciml.storage.local import replace_file
from ciml.training.estimators.names import LIBRARIES, import_allowed, is_allowed

__all__ = ["DESCRIPTION", "FILE", "check_modules", "load", "save"]

FILE = "estimator.skops"
#: Written last: a folder without it has no estimator.
DESCRIPTION = "estimator.json"
_FORMAT = "ciml.estimator/1"
_REMEDY = "train the experiment again"
#: Types besides those that skops trusts, which are scikit-learn's estimators and numpy's numbers.
_TRUSTED = re.compile(
    r"collections\.OrderedDict|collections\.defaultdict"
    r"|lightgbm\.basic\.Booster|lightgbm\.sklearn\.LGBMClassifier"
    r"|xgboost\.core\.Booster|xgboost\.sklearn\.XGB(?:RF)?Classifier"
    r"|sklearn\.calibration\._(?:CalibratedClassifier|SigmoidCalibration|TemperatureScaling)"
    r"|sklearn\.ensemble\._hist_gradient_boosting\.predictor\.TreePredictor"
    r"|sklearn\.feature_selection\._mutual_info\.mutual_info_(?:classif|regression)"
    r"|sklearn\.feature_selection\._univariate_selection\.(?:f_classif|chi2|f_regression|r_regression)"
    r"|sklearn\.gaussian_process\._gpc\._BinaryGaussianProcessClassifierLaplace"
    r"|sklearn\.gaussian_process\.kernels\.[A-Z]\w+"
    r"|sklearn\.metrics\._dist_metrics\.[A-Z]\w+Distance(?:32|64)?"
    r"|sklearn\.metrics\._scorer\._PassthroughScorer"
    r"|sklearn\.model_selection\._split\.[A-Z]\w+"
    r"|sklearn\.neighbors\._(?:kd|ball)_tree\.(?:KDTree|BallTree)(?:32|64)?"
    r"|sklearn\.neural_network\._stochastic_optimizers\.\w+Optimizer"
    r"|sklearn\.tree\._tree\.Tree"
    r"|sklearn\.utils\._bunch\.Bunch",
    re.ASCII,
)
_ARRAY = re.compile(r"\d+\.npy")
_BYTES = re.compile(r"[0-9a-f-]+\.bin")


def save(estimator: Any, folder: Path) -> tuple[str, ...]:
    """Write a fitted estimator into a folder, and check that `load` reads it.

    Args:
      estimator: with scikit-learn's ``fit``.
      folder: is created; ``estimator.skops`` and ``estimator.json`` in it are replaced.

    Returns:
      The modules that `load` must be allowed to import: those of no known library, sorted.

    Raises:
      CimlError: it holds an object that cannot be stored; with its type.
    """
    from skops import io

    try:
        data = io.dumps(estimator)
    except Exception as error:  # noqa: BLE001 - skops raises whatever the object's own methods raise
        raise CimlError(_cannot(estimator, f"{type(error).__name__}: {_line(error)}")) from None
    types = io.get_untrusted_types(data=data)
    names = [name for name in types if not _TRUSTED.fullmatch(name)]
    modules = tuple(sorted({name.rpartition(".")[0] for name in names if name.partition(".")[0] not in LIBRARIES}))
    try:
        _check_archive(data)
        _construct(data, modules)
    except CimlError as error:
        raise CimlError(_cannot(estimator, str(error))) from None
    folder.mkdir(parents=True, exist_ok=True)
    replace_file(folder / FILE, data)
    description = {
        "format": _FORMAT,
        "bytes": len(data),
        "sha256": hashlib.sha256(data).hexdigest(),
        "modules": list(modules),
        "versions": _versions(),
    }
    write_json(folder / DESCRIPTION, description)
    return modules


def load(folder: Path, allowed: Iterable[str] = ()) -> Any:
    """Load the estimator that `save` wrote.

    Args:
      folder: the folder.
      allowed: modules that may be imported besides scikit-learn, xgboost and lightgbm, with the modules below them.

    Raises:
      IntegrityError: a file is missing, damaged, too large, or differs from its digest.
      CimlError: it was stored with another version of scikit-learn, or holds a type that is not trusted. No module of
        such a type was imported.
    """
    description = read_json(folder / DESCRIPTION, _REMEDY, IntegrityError)
    if description is None:
        raise IntegrityError(f"{folder / DESCRIPTION} is missing; {_REMEDY}")
    if description.get("format") != _FORMAT:
        raise CimlError(f"{folder / DESCRIPTION}: format {description.get('format')!r:.80} is unknown; upgrade ciml")
    _check_versions(description.get("versions"), folder)
    try:
        if (folder / FILE).stat().st_size > MAX_STORED_BYTES:
            raise IntegrityError(f"{folder / FILE} is larger than {MAX_STORED_BYTES:,} bytes (MAX_STORED_BYTES)")
        data = (folder / FILE).read_bytes()
    except FileNotFoundError:
        raise IntegrityError(f"{folder / FILE} is missing; {_REMEDY}") from None
    if hashlib.sha256(data).hexdigest() != description.get("sha256"):
        raise IntegrityError(f"{folder / FILE} differs from its digest; {_REMEDY}")
    try:
        _check_archive(data)
        return _construct(data, tuple(allowed))
    except CimlError as error:
        raise type(error)(f"{folder / FILE}: {error}") from None


def check_modules(description: Mapping[str, Any], allowed: Iterable[str], where: str) -> None:
    """Check the modules that `load` will import, without an import.

    Args:
      description: the content of `DESCRIPTION`.
      allowed: as for `load`.
      where: begins the error.

    Raises:
      CimlError: a module is not allowed.
    """
    allowed = tuple(allowed)
    missing = [module for module in description.get("modules", ()) if not is_allowed(module, allowed)]
    if missing:
        options = " ".join(f"--allow-module {module}" for module in missing)
        raise CimlError(f"{where} has classes of {', '.join(missing)}, which is not allowed; allow it: {options}")


def _construct(data: bytes, allowed: tuple[str, ...]) -> Any:
    """Load an estimator whose types are all trusted."""
    from skops import io

    try:
        types = io.get_untrusted_types(data=data)
    except Exception as error:  # noqa: BLE001 - a damaged schema raises errors of all kinds
        raise IntegrityError(f"is not a valid skops file ({type(error).__name__}); {_REMEDY}") from None
    for name in types:
        if not _TRUSTED.fullmatch(name):
            _check_own(name, allowed)
    try:
        return io.loads(data, trusted=types)
    except Exception as error:  # noqa: BLE001 - as above, and from an estimator's __setstate__
        raise IntegrityError(f"cannot be loaded ({type(error).__name__}: {_line(error)}); {_REMEDY}") from None


def _check_own(name: str, allowed: tuple[str, ...]) -> None:
    """Raise `CimlError` unless a type is defined in an allowed module."""
    module, _, attribute = name.rpartition(".")
    if module.partition(".")[0] in LIBRARIES:
        raise CimlError(f"holds a {name:.200}, which is not trusted; use another estimator")
    try:
        import_allowed(f"{module}:{attribute}", allowed)
    except InvalidSettingError as error:
        raise CimlError(f"holds a {name:.200}: {error}") from None


def _check_archive(data: bytes) -> None:
    """Raise `IntegrityError` if an archive holds other files, or is larger in memory than as a file."""
    if len(data) > MAX_STORED_BYTES:
        raise IntegrityError(f"has {len(data):,} bytes, at most {MAX_STORED_BYTES:,} (MAX_STORED_BYTES)")
    try:
        with zipfile.ZipFile(BytesIO(data)) as archive:
            entries = archive.infolist()
            if len(entries) > MAX_STORED_FILES:
                raise IntegrityError(f"has {len(entries):,} arrays, at most {MAX_STORED_FILES:,} (MAX_STORED_FILES)")
            for entry in entries:
                _check_entry(archive, entry)
    except (zipfile.BadZipFile, ValueError, EOFError, OSError, NotImplementedError) as error:
        raise IntegrityError(f"is damaged ({type(error).__name__}: {_line(error)}); {_REMEDY}") from None


def _check_entry(archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> None:
    if entry.compress_type != zipfile.ZIP_STORED or entry.file_size != entry.compress_size:
        raise IntegrityError(f"{entry.filename!r:.80} is compressed, which ciml never does; {_REMEDY}")
    if entry.filename == "schema.json":
        if entry.file_size > MAX_STORED_SCHEMA_BYTES:
            limit = f"{MAX_STORED_SCHEMA_BYTES:,} (MAX_STORED_SCHEMA_BYTES)"
            raise IntegrityError(f"schema.json has {entry.file_size:,} bytes, at most {limit}")
    elif entry.filename.endswith(".npz"):
        raise CimlError("holds a sparse matrix; use dense arrays (sparse_output=False)")
    elif _ARRAY.fullmatch(entry.filename):
        _check_array(archive, entry)
    elif not _BYTES.fullmatch(entry.filename):
        raise IntegrityError(f"{entry.filename!r:.80} does not belong to an estimator; {_REMEDY}")


def _check_array(archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> None:
    """Raise `IntegrityError` if an array's header promises more values than its file has."""
    from numpy.lib import format as npy

    with archive.open(entry) as file:
        version = npy.read_magic(file)
        read = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
        shape, _, dtype = read(file)
        if dtype.hasobject or file.tell() + prod(shape) * dtype.itemsize != entry.file_size:
            raise IntegrityError(f"{entry.filename} has not the values that its header names; {_REMEDY}")


def _versions() -> dict[str, str]:
    """Return the versions that the numbers in a file depend on."""
    from importlib import metadata

    return {name: metadata.version(name) for name in ("scikit-learn", "skops")}


def _check_versions(versions: Any, folder: Path) -> None:
    """Raise `CimlError` if scikit-learn has another minor version: attributes of estimators change between these."""
    stored = str(versions.get("scikit-learn") if isinstance(versions, dict) else None)
    present = _versions()["scikit-learn"]
    if stored.split(".")[:2] != present.split(".")[:2]:
        raise CimlError(
            f"{folder / FILE} was stored with scikit-learn {stored:.40}, and {present} is installed; {_REMEDY}"
        )


def _cannot(estimator: Any, reason: str) -> str:
    return f"{type(estimator).__name__} cannot be stored: {reason}"


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]
