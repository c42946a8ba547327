"""Fixtures of receivers."""

from tests.services.receivers.conftest import probe

__all__ = ["probe"]
