"""Checks that an installation meets the requirements of a command: a library of an extra, or a newer Python.

An extra is an optional group of ciml's dependencies, such as ``ciml[train]``. A missing one is a `MissingExtraError`,
whose message is one line with the command that installs it.
"""

from __future__ import annotations

import importlib.util
import sys
import traceback

from ciml.errors import CimlError, MissingExtraError

#: Modules that extras install, by all extras that install them. If several do, `missing_extra` names the extra of the
#: importing room, which its package states as ``EXTRA``, or by default the last one.
_MODULES = {
    ("data",): ("boto3", "botocore", "numpy", "platformdirs", "pyarrow", "ruptures", "scipy", "urllib3", "zlib_ng"),
    ("receivers", "data"): ("filelock", "httpcore", "prometheus_client", "rich", "tenacity"),
    ("train", "dataflow", "pipelines"): ("apache_beam",),
    ("serve", "train", "dataflow", "pipelines"): ("google",),
    ("serve", "train", "pipelines"): ("grpc",),
    ("local", "pipelines"): ("httpx",),
    ("receivers", "pipelines"): ("cryptography",),
    ("pipelines",): ("jwt",),
    ("receivers",): ("asyncssh", "paho"),
    ("train", "pipelines"): ("setuptools",),
    ("train",): ("crepes", "optuna", "skops", "tensorflow_metadata", "tensorflow_transform", "tfx_bsl", "treelite"),
    ("serve", "train"): ("keras", "ml_dtypes", "tensorflow", "tensorflow_serving"),
    ("reports", "train"): ("sklearn", "threadpoolctl"),
    ("serve",): ("google_crc32c",),
    ("receivers", "serve"): ("h11", "starlette"),
    ("reports",): ("jinja2", "markupsafe", "matplotlib"),
    ("lineage",): ("openlineage",),
    ("mlflow",): ("alembic", "mlflow", "pandas", "sqlalchemy"),
    ("kubeflow",): ("kfp",),
    ("tables",): ("deltalake",),
    ("local",): ("flask", "moto"),
}
#: The extras that install a module, by its name.
EXTRAS = {module: extras for extras, modules in _MODULES.items() for module in modules}

#: The oldest Python for everything except the recorder, which runs on 3.9.
OLDEST_PYTHON = (3, 11)


def require(module: str, extra: str) -> None:
    """Raise `MissingExtraError` if a module of an extra is not installed. The module is not imported."""
    if not is_installed(module):
        raise MissingExtraError(extra)


def is_installed(module: str) -> bool:
    """Return whether a module can be imported. Only the packages that contain it are imported."""
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # a package that would contain it
        return False


def missing_extra(error: ModuleNotFoundError) -> MissingExtraError | None:
    """Return the error that names the extra of a module that could not be imported; None if no extra installs it."""
    extras = EXTRAS.get((error.name or "").partition(".")[0])
    if extras is None:
        return None
    importing_rooms = {
        ".".join(frame.f_globals.get("__name__", "").split(".")[:2])
        for frame, _ in traceback.walk_tb(error.__traceback__)
    }
    room_extras = {getattr(sys.modules.get(room), "EXTRA", None) for room in importing_rooms}
    return MissingExtraError(next((extra for extra in extras if extra in room_extras), extras[-1]))


def require_python(feature: str) -> None:
    """Raise `CimlError`, which names the feature, if this Python is too old for anything but the recorder."""
    if sys.version_info < OLDEST_PYTHON:
        version = ".".join(map(str, sys.version_info[:2]))
        raise CimlError(f"{feature} needs Python 3.11 or newer, this is Python {version}; only ciml record runs on it")
