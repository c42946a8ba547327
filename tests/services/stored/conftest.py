"""Erasures are tested in a folder and on S3."""

from tests.runs.conftest import anywhere as anywhere
