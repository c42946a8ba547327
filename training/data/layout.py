"""Names of the files of a materialised snapshot."""

from __future__ import annotations

from ciml.training.data.snapshot import Role

TRANSFORM_FOLDER = "transform"
RECORDS_FOLDER = "records"


def shard_name(role: Role, first: int, rows: int) -> str:
    """Return the file name of a batch's rows of one role.

    It follows from the rows, so a retried bundle overwrites it.
    """
    return f"{role}/{first:09d}-{rows}.tfrecord"
