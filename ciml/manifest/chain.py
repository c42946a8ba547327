"""The chain of digests through the single deltas of a manifest.

Each delta carries a digest of itself and, as its ``seal`` (`ciml.storage.json_files`), the digest of the delta before
it. A reader goes from `Link` to `Link` and compares both, so it detects a flipped bit, a replaced delta and a delta of
another history.

Deltas of older versions are *unsealed*: they have neither. The first delta with a digest after them has
``<first>:<digest>`` as its seal: the digest of all deltas from version ``first`` on that have none. It protects them
until they are in a segment. After a delta with a digest, one without is an error.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from ciml.errors import IntegrityError
from ciml.storage.json_files import RESTORE, seal_of


class UnsealedDeltaError(IntegrityError):
    """A delta has no digest, but the one before it has."""


@dataclass(frozen=True)
class Link:
    """A position in the chain: after the delta of a version.

    Attributes:
      version: the last delta; 0 before the first one.
      digest: the digest that it carries; "" if it has none.
      unsealed: digests of the unsealed deltas up to ``version``, as far as they were read one after the other.
      is_known: whether the last delta was read. If not, the next one is not compared with it.
    """

    version: int = 0
    digest: str = ""
    unsealed: tuple[bytes, ...] = ()
    is_known: bool = True

    @classmethod
    def unread(cls, version: int) -> Link:
        """Return the position after a delta that was not read; before the first delta everything is known."""
        return cls(version, is_known=version == 0)

    def next_seal(self) -> str:
        """Return the ``seal`` of the next delta."""
        return self._unsealed_seal(self._first_unsealed) if self.unsealed else self.digest

    def after(self, data: bytes, where: str) -> Link:
        """Check the next delta; return the position after it.

        Args:
          data: its bytes.
          where: its address, for errors.

        Raises:
          IntegrityError: it differs from its digest, has none after a delta that has, or follows another delta.
        """
        next_seal = seal_of(data, where)
        if next_seal is None:
            return self._after_unsealed(data, where)
        if self.is_known and not self._precedes(next_seal.text):
            raise IntegrityError(f"{where} does not follow from the delta before it; {RESTORE}")
        return Link(self.version + 1, next_seal.digest)

    def _after_unsealed(self, data: bytes, where: str) -> Link:
        if self.digest:
            raise UnsealedDeltaError(
                f"{where} has no digest, but the delta before it has: it is damaged, or an older ciml wrote it; "
                "stop older versions and run ciml migrate DATA --apply, or restore a backup"
            )
        digest = hashlib.sha256(data.replace(b"\n", b" ")).digest()  # of the line in a segment
        return Link(self.version + 1, "", (*self.unsealed, digest))

    def _precedes(self, seal_text: str) -> bool:
        if not self.unsealed:
            return seal_text == self.digest
        first_text, colon, _ = seal_text.partition(":")
        if not colon or not first_text:
            return False
        first = int(first_text, 16)
        if first < self._first_unsealed:
            return True  # it also covers deltas that were not read here, so it cannot be compared
        return first <= self.version and seal_text == self._unsealed_seal(first)

    @property
    def _first_unsealed(self) -> int:
        """The version of the first digest in ``unsealed``."""
        return self.version - len(self.unsealed) + 1

    def _unsealed_seal(self, first: int) -> str:
        digests = self.unsealed[first - self._first_unsealed :]
        return f"{first:x}:{hashlib.sha256(b''.join(digests)).hexdigest()}"
