"""Fixtures of other rooms: an empty data root and a model server with models."""

from tests.pipelines.conftest import folders, world
from tests.runs.conftest import data

__all__ = ["data", "folders", "world"]
