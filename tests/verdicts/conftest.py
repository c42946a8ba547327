"""Fixtures of other rooms: a model server with models, and a data root with a data set."""

from tests.pipelines.conftest import folders, world
from tests.training.conftest import data, made

__all__ = ["data", "folders", "made", "world"]
