"""The extra of ciml that installs each library, and the one-line error for a missing library."""

from __future__ import annotations

import importlib.util
import sys
import traceback

from ciml.errors import CimlError

#: The extras that install a library, by the name of its module. The error names the extra of the importing room, which
#: its package states as ``EXTRA``, else the last one.
EXTRAS = {
    "boto3": ("data",),
    "botocore": ("data",),
    "filelock": ("receivers", "data"),
    "httpcore": ("receivers", "data"),
    "numpy": ("data",),
    "platformdirs": ("data",),
    "prometheus_client": ("receivers", "data"),
    "pyarrow": ("data",),
    "rich": ("receivers", "data"),
    "scipy": ("data",),
    "tenacity": ("receivers", "data"),
    "urllib3": ("data",),
    "zlib_ng": ("data",),
    "apache_beam": ("train", "dataflow", "pipelines"),
    "google": ("serve", "train", "dataflow", "pipelines"),
    "grpc": ("serve", "train", "pipelines"),
    "httpx": ("local", "pipelines", "receivers"),
    "cryptography": ("receivers", "pipelines"),
    "jwt": ("pipelines",),
    "paho": ("receivers",),
    "asyncssh": ("receivers",),
    "setuptools": ("train", "pipelines"),
    "crepes": ("train",),
    "keras": ("serve", "train"),
    "ml_dtypes": ("serve", "train"),
    "optuna": ("train",),
    "sklearn": ("reports", "train"),
    "tensorflow": ("serve", "train"),
    "tensorflow_metadata": ("train",),
    "tensorflow_serving": ("serve", "train"),
    "tensorflow_transform": ("train",),
    "tfx_bsl": ("train",),
    "threadpoolctl": ("reports", "train"),
    "google_crc32c": ("serve",),
    "h11": ("receivers", "serve"),
    "starlette": ("receivers", "serve"),
    "uvicorn": ("receivers", "serve"),
    "jinja2": ("reports",),
    "markupsafe": ("reports",),
    "matplotlib": ("reports",),
    "openlineage": ("lineage",),
    "alembic": ("mlflow",),
    "mlflow": ("mlflow",),
    "pandas": ("mlflow",),
    "sqlalchemy": ("mlflow",),
    "kfp": ("kubeflow",),
    "deltalake": ("tables",),
    "flask": ("local",),
    "moto": ("local",),
}


def missing_extra(error: ModuleNotFoundError) -> str | None:
    """Return one line that names the extra for a module that cannot be imported; None if there is no such extra."""
    extras = EXTRAS.get((error.name or "").partition(".")[0])
    if extras is None:
        return None
    frames = traceback.walk_tb(error.__traceback__)
    packages = {".".join(frame.f_globals.get("__name__", "").split(".")[:2]) for frame, _ in frames}
    importing = {getattr(sys.modules.get(package), "EXTRA", None) for package in packages}
    return _line(next((extra for extra in extras if extra in importing), extras[-1]))


def require(module: str) -> None:
    """Raise `CimlError`, in one line that names the extra, if a library is not installed. It is not imported."""
    if not is_installed(module):
        raise CimlError(_line(EXTRAS[module][-1]))


def is_installed(module: str) -> bool:
    """Return whether a library is installed. It is not imported."""
    return importlib.util.find_spec(module) is not None


def needs(extra: str) -> CimlError:
    """Return the error of a missing extra, for a library whose module does not name it."""
    return CimlError(_line(extra))


def _line(extra: str) -> str:
    return f"this needs ciml[{extra}]: pip install 'ciml[{extra}]'"
