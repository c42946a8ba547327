"""Stores: objects in a folder or an S3 bucket behind one interface, whose `create` is the atomic commit.

Uses boto3, for S3 only. It knows no layout of objects: `ciml.data_root` and the manifests do.
"""

from __future__ import annotations

import os

from ciml.errors import CimlError
from ciml.extras import require
from ciml.storage.base import Entry, Store
from ciml.storage.local import LocalStore
from ciml.storage.s3 import S3Store

__all__ = ["Entry", "LocalStore", "S3Store", "Store", "open_store"]


def open_store(url: str | os.PathLike[str]) -> Store:
    """Return the store at a local folder or an ``s3://bucket/prefix``.

    S3 takes its endpoint and credentials from the environment, as boto3 does (``AWS_ENDPOINT_URL_S3``, …).

    Raises:
      CimlError: for any other scheme, and for S3 where boto3 is not installed.
    """
    text = os.fspath(url)
    if text.startswith("s3://"):
        require("boto3", "data")
        return S3Store(text)
    if text.startswith("gs://"):
        raise CimlError(
            f"{text}: not a store: ciml commits by conditional writes, which it has for S3 and local folders alone; "
            "give s3://bucket/prefix"
        )
    if "://" in text:
        raise CimlError(f"{text}: not a store; give a local path or s3://bucket/prefix")
    return LocalStore(text)
