"""Names of the files of a materialised snapshot."""

from __future__ import annotations

from training.data.snapshot import Role

TRANSFORM_FOLDER = "transform"


RECORDS_FOLDER = "records"


def shard_name(role: Role, first: int, rows: int) -> str:
    """The file of a batch's rows of one role: named by what it holds, so that a repeated bundle writes it again."""
    return f"{role}/{first:09d}-{rows}.tfrecord"
