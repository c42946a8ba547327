"""Seals: a Parquet file carries the sha256 of its own bytes and its name, so that damage is detected before parsing.

The seal is the last entry of the file's key-value metadata, ``ciml.sha256`` = ``ciml.sha256=<64 hex digits> <name>``.
The digest covers every other byte: page headers, page checksums and the footer too. Any program that reads Parquet
reads a sealed file. Files of older versions have no seal: readers compute the digest of their content instead.
"""

from __future__ import annotations

import hashlib

from ciml.errors import IntegrityError

#: The key of the seal in a file's key-value metadata.
SEAL = b"ciml.sha256"
_MARK = SEAL + b"="
_DIGITS = 64


def unsealed(path: str) -> dict[bytes, bytes]:
    """Return the entry of the key-value metadata that `seal` completes. Add it last.

    Args:
      path: where the file will be stored. Its folder is ignored, because objects move.
    """
    return {SEAL: _MARK + b"0" * _DIGITS + b" " + _name(path)}


def seal(data: bytes) -> bytes:
    """Fill in the seal of a file that has the entry of `unsealed`."""
    at = data.rindex(_MARK) + len(_MARK)
    return b"".join((data[:at], _digest(data, at), data[at + _DIGITS :]))


def is_sealed(data: bytes, path: str, url: str) -> bool:
    """Return whether a file has a seal; a file of an older version has none.

    Args:
      data: the file.
      path: where it was read.
      url: its full address, for errors.

    Raises:
      IntegrityError: its name or bytes differ from the sealed ones.
    """
    found = data.rfind(_MARK)
    if found < 0 and SEAL not in data:
        return False
    at = found + len(_MARK)
    if found < 0 or data[at : at + _DIGITS] != _digest(data, at):
        raise damaged(url)
    if not data.startswith(b" " + _name(path), at + _DIGITS):
        raise IntegrityError(f"{url} holds the seal of another file; restore a backup")
    return True


def damaged(url: str) -> IntegrityError:
    """Return the error for a stored file whose bytes differ from its digest."""
    return IntegrityError(f"{url} differs from its digest; restore a backup")


def unreadable(url: str, error: Exception) -> IntegrityError:
    """Return the error for a stored file that Parquet's reader cannot read; its own message may have several lines."""
    return IntegrityError(f"{url} cannot be read as Parquet ({' '.join(str(error).split()):.200}); restore a backup")


def _name(path: str) -> bytes:
    return path.rpartition("/")[2].encode()


def _digest(data: bytes, at: int) -> bytes:
    view = memoryview(data)
    digest = hashlib.sha256(view[:at])
    digest.update(view[at + _DIGITS :])
    return digest.hexdigest().encode()
