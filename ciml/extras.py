"""What an installation lacks for a command, as an error of one line: the extra of a library, or a newer Python."""

from __future__ import annotations

import importlib.util
import sys
import traceback

from ciml.errors import CimlError, MissingExtraError

#: The modules of libraries, by the extras that install them.
_MODULES = {
    "data": "boto3 botocore numpy platformdirs pyarrow scipy urllib3 zlib_ng",
    "receivers data": "filelock httpcore prometheus_client rich tenacity",
    "train dataflow pipelines": "apache_beam",
    "serve train dataflow pipelines": "google",
    "serve train pipelines": "grpc",
    "local pipelines receivers": "httpx",
    "receivers pipelines": "cryptography",
    "pipelines": "jwt",
    "receivers": "paho asyncssh",
    "train pipelines": "setuptools",
    "train": "crepes optuna tensorflow_metadata tensorflow_transform tfx_bsl",
    "serve train": "keras ml_dtypes tensorflow tensorflow_serving",
    "reports train": "sklearn threadpoolctl",
    "serve": "google_crc32c",
    "receivers serve": "h11 starlette",
    "reports": "jinja2 markupsafe matplotlib",
    "lineage": "openlineage",
    "mlflow": "alembic mlflow pandas sqlalchemy",
    "kubeflow": "kfp",
    "tables": "deltalake",
    "local": "flask moto",
}
#: The extras that install a library, by the name of its module. The error names the extra of the importing room, which
#: its package states as ``EXTRA``, else the last one.
EXTRAS = {module: tuple(extras.split()) for extras, modules in _MODULES.items() for module in modules.split()}

#: The oldest Python for everything except the recorder, which runs on 3.9.
OLDEST_PYTHON = (3, 11)


def require_python(what: str) -> None:
    """Raise `CimlError` if this Python is too old for anything but the recorder.

    Args:
      what: what needs the newer Python, for the message.
    """
    if sys.version_info < OLDEST_PYTHON:
        this = ".".join(map(str, sys.version_info[:2]))
        raise CimlError(f"{what} needs Python 3.11 or newer, this is Python {this}; only ciml record runs on it")


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
    """Raise `MissingExtraError` if a library is not installed. It is not imported."""
    if not is_installed(module):
        raise MissingExtraError(_line(EXTRAS[module][-1]))


def is_installed(module: str) -> bool:
    """Return whether a library is installed. It is not imported."""
    return importlib.util.find_spec(module) is not None


def needs(extra: str) -> MissingExtraError:
    """Return the error of a missing extra, for a library whose module does not name it."""
    return MissingExtraError(_line(extra))


def _line(extra: str) -> str:
    return f"this needs ciml[{extra}]: pip install 'ciml[{extra}]'"
