"""The split of a run into train, dev or test by a keyed hash, so that runs stay when others are added."""

from __future__ import annotations

import hashlib
from functools import lru_cache
from typing import Any, Final

SPLITS: Final = ("train", "dev", "test")
_RANGE = 1 << 64


@lru_cache(maxsize=16)
def _hash(salt: str) -> Any:
    """Return the keyed hash; copy it before use. Creating it takes longer than hashing here."""
    key = hashlib.sha256(salt.encode("utf-8", "surrogatepass")).digest()
    return hashlib.blake2b(key=key, digest_size=8, person=b"ciml split")


def subject_of(project: str, change: str, run_id: str) -> str:
    """Return what stays together in a split: the change of a run where known, else the run."""
    return f"change\0{project}\0{change}" if change else f"run\0{run_id}"


def split_of(project: str, change: str, run_id: str, salt: str, weights: tuple[int, int, int] = (7, 0, 3)) -> str:
    """Return the split of a run: that of its change where known, so that reruns of a change stay together.

    Args:
      project: the project of the change; may be empty.
      change: the tested change; empty where unknown.
      run_id: the encoded run id, which decides without a change.
      salt: key of the hash. Data sets that share it have the same splits.
      weights: of train, dev and test; whole numbers, not all 0.

    Returns:
      ``train``, ``dev`` or ``test``.
    """
    digest = _hash(salt).copy()
    digest.update(subject_of(project, change, run_id).encode("utf-8", "surrogatepass"))
    point = int.from_bytes(digest.digest(), "big") * sum(weights)  # integers: no rounding at the borders
    reached = 0
    for name, weight in zip(SPLITS, weights, strict=True):
        reached += weight * _RANGE
        if point < reached:
            return name
    raise ValueError(f"weights {weights}: at least one must be above 0")
