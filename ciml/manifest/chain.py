"""The chain of a log: each delta carries a digest of itself and of the delta before it.

So a flipped bit, a replaced delta and a delta of another history are detected when the log is read. The ``seal`` of a
delta (`ciml.storage.json_seal`) is the digest of the previous delta. Deltas of older versions have no digest: the first
delta with one has ``<first>:<digest>`` there, the digest of all deltas from version ``first`` on that have none. It
protects them until a segment does. After a delta with a digest, one without is an error.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from ciml.errors import IntegrityError
from ciml.storage.json_seal import RESTORE, Seal, seal_of


class UnsealedDeltaError(IntegrityError):
    """A delta has no digest, but the one before it has."""


@dataclass(frozen=True)
class Link:
    """A position in a chain: what is known of the deltas up to a version.

    Attributes:
      version: the last delta; 0 before the first one.
      digest: the digest that it carries; "" if it has none.
      unsealed: digests of the deltas up to ``version`` that carry none, as far as they were read one after the other.
      is_known: whether the last delta was read. If not, nothing is known of it.
    """

    version: int = 0
    digest: str = ""
    unsealed: tuple[bytes, ...] = ()
    is_known: bool = True

    def text(self) -> str:
        """Return the link of the next delta to the deltas before it."""
        return self._text_from(self._first) if self.unsealed else self.digest

    @property
    def _first(self) -> int:
        """The version of the first digest in ``unsealed``."""
        return self.version - len(self.unsealed) + 1

    def _text_from(self, first: int) -> str:
        return f"{first:x}:{hashlib.sha256(b''.join(self.unsealed[first - self._first :])).hexdigest()}"

    def after(self, data: bytes, where: str) -> Link:
        """Check the next delta; return the position after it.

        Args:
          data: its bytes.
          where: its address, for errors.

        Raises:
          IntegrityError: it differs from its digest, has none after a delta that has, or follows another delta.
        """
        seal = seal_of(data, where)
        if seal is not None:
            if self.is_known and not self._precedes(seal):
                raise IntegrityError(f"{where} does not follow from the delta before it; {RESTORE}")
            return Link(self.version + 1, seal.digest)
        if self.digest:
            raise UnsealedDeltaError(
                f"{where} has no digest, but the delta before it has: it is damaged, or an older ciml wrote it; "
                "stop older versions and run ciml migrate DATA --apply, or restore a backup"
            )
        digest = hashlib.sha256(data.replace(b"\n", b" ")).digest()  # of the line in a segment
        return Link(self.version + 1, "", (*self.unsealed, digest))

    def _precedes(self, seal: Seal) -> bool:
        if not self.unsealed:
            return seal.text == self.digest
        first, colon, _ = seal.text.partition(":")
        if not colon or not first:
            return False
        number = int(first, 16)
        if number < self._first:
            return True  # deltas that were read earlier, or are in a segment
        return number <= self.version and self._text_from(number) == seal.text
