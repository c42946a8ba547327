"""Parts of tables that are made from a manifest's deltas: each part has the rows of a range of versions.

A part ends with the segment that brings it to `PART_BYTES`; the last part ends with the last delta. Segments are
permanent, so only the last part changes as the manifest grows, and an older one only where a later delta changes one of
its rows.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import NamedTuple

from ciml.manifest.log import ManifestLog

#: Compressed size of the segments of a part, bytes: about 20,000 runs.
PART_BYTES = 4 << 20
_PATH = re.compile(r"(\d{12})-(\d{12})\.[0-9a-f]{32}\.parquet")


class Part(NamedTuple):
    """The rows of deltas ``first`` to ``last``."""

    first: int
    last: int

    def path(self, digest: str) -> str:
        """Return the path of its file, whose content has the digest."""
        return f"{self.first:012d}-{self.last:012d}.{digest[:32]}.parquet"


def part_of(path: str) -> Part | None:
    """Return the part in a file; None for other files."""
    found = _PATH.fullmatch(path)
    return Part(int(found[1]), int(found[2])) if found else None


def parts_of(segments: Iterable[tuple[int, int]], version: int, part_bytes: int = PART_BYTES) -> list[Part]:
    """Return the parts of a manifest, in order.

    Args:
      segments: last version and size of each segment, in order.
      version: the last delta.
      part_bytes: a part ends with the segment that brings it to this size.

    >>> parts_of([(10, 3), (20, 3), (25, 9)], 27, 5)
    [Part(first=1, last=20), Part(first=21, last=25), Part(first=26, last=27)]
    """
    parts, first, size = [], 1, 0
    for last, of_segment in segments:
        if last > version:
            break
        size += of_segment
        if size >= part_bytes:
            parts.append(Part(first, last))
            first, size = last + 1, 0
    return [*parts, Part(first, version)] if first <= version else parts


def manifest_parts(log: ManifestLog, version: int) -> list[Part]:
    """Return the parts of a manifest up to a version."""
    return parts_of(log.archive.sizes(), version)
