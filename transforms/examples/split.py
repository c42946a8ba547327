"""Splitting: each run's place in train, dev or test by a keyed hash, so that nothing moves when runs are added."""

from __future__ import annotations

import hashlib
from functools import lru_cache
from typing import Any, Final

SPLITS: Final = ("train", "dev", "test")
_RANGE = 1 << 64


@lru_cache(maxsize=16)
def _hash(salt: str) -> Any:
    """Return the keyed hash, ready for a subject. To be copied: making one takes longer than what it hashes here."""
    key = hashlib.sha256(salt.encode("utf-8", "surrogatepass")).digest()
    return hashlib.blake2b(key=key, digest_size=8, person=b"ciml split")


def split_of(project: str, change: str, run_id: str, salt: str, weights: tuple[int, int, int] = (7, 0, 3)) -> str:
    """Return the split of a run: that of its change where the change is known, so that reruns never face each other.

    Args:
      project: the project of the change; may be empty.
      change: the change that the run was for; empty where it is not known.
      run_id: the encoded run id, which decides where there is no change.
      salt: key of the hash. All data sets that share it agree.
      weights: of train, dev and test; whole numbers, not all 0.

    Returns:
      ``train``, ``dev`` or ``test``.
    """
    subject = f"change\0{project}\0{change}" if change else f"run\0{run_id}"
    digest = _hash(salt).copy()
    digest.update(subject.encode("utf-8", "surrogatepass"))
    point = int.from_bytes(digest.digest(), "big") * sum(weights)  # whole numbers: no rounding at the borders
    reached = 0
    for name, weight in zip(SPLITS, weights, strict=True):
        reached += weight * _RANGE
        if point < reached:
            return name
    raise ValueError(f"weights {weights}: at least one must be above 0")
